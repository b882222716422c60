"""Any damage to a data set's manifest or shards is `DataError`, or changes nothing that is read: no traceback, no hang.

Each example is read in another process, because a reader of broken files might end the one that it runs in.
"""

import hashlib
import json
import multiprocessing
import shutil
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mgdet.data import ShapesConfig, ShardedDataset, generate_shapes
from mgdet.errors import DataError
from mgdet.records import seal, unseal
from tests.data.damages import forget_proofs, shard_of

SPAWN = multiprocessing.get_context("spawn")
LONGEST_S = 120
"""For what takes milliseconds."""


def read(root: str) -> str:
    """The checksum of all that both splits hold, or the message of the `DataError` that refuses it."""
    digest = hashlib.sha256()
    try:
        for split in ("train", "val"):
            data = ShardedDataset(root, split)
            digest.update(
                str([data.categories, *map(data.file_name, range(len(data))), *data.image_ids.tolist()]).encode()
            )
            for i in range(len(data)):
                digest.update(b"".join([data.read_image(i), *(values.tobytes() for values in data.annotation(i))]))
    except DataError as error:
        return f"refused: {error}"
    return digest.hexdigest()


def serve(pipe: Connection) -> None:
    """Read the data sets that are asked for."""
    while True:
        pipe.send(read(pipe.recv()))


class Reader:
    """A process that reads data sets; it is started again if one ends it."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        self.pipe, other = SPAWN.Pipe()
        self.process = SPAWN.Process(target=serve, args=(other,), daemon=True)
        self.process.start()
        other.close()

    def read(self, root: Path) -> str:
        """What `read` says there. Fails where it raised something else, crashed or did not end."""
        try:
            self.pipe.send(str(root))
            if self.pipe.poll(LONGEST_S):
                return str(self.pipe.recv())
            reason = "it hangs"
        except (EOFError, OSError):
            self.process.join(LONGEST_S)
            reason = f"its process ended with {self.process.exitcode}"
        self.process.kill()
        self.start()
        raise AssertionError(reason)


class Place(NamedTuple):
    """A whole data set, and a directory in which copies of it are damaged."""

    whole: Path
    directory: Path
    reader: Reader
    says: str
    """What is read there."""

    def copy(self) -> Path:
        target = self.directory / "copy"
        shutil.rmtree(target, ignore_errors=True)
        return Path(shutil.copytree(self.whole, target))


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    reader = Reader()
    yield reader
    reader.process.kill()


@pytest.fixture(scope="module")
def proven(tmp_path_factory: pytest.TempPathFactory, reader: Reader) -> Place:
    directory = tmp_path_factory.mktemp("proven")
    generate_shapes(str(directory / "whole"), ShapesConfig(train=5, val=2, size=48))
    return Place(directory / "whole", directory, reader, reader.read(directory / "whole"))


@pytest.fixture(scope="module")
def unproven(tmp_path_factory: pytest.TempPathFactory, proven: Place) -> Place:
    """Of an earlier version, without checksums."""
    directory = tmp_path_factory.mktemp("unproven")
    shutil.copytree(proven.whole, directory / "whole")
    for split in ("train", "val"):
        forget_proofs(directory / "whole", split)
    return proven._replace(whole=directory / "whole", directory=directory)


HITS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "insert", "zero", "repeat"]),
        st.floats(0, 1),  # where
        st.integers(0, 255),
        st.booleans(),  # near the end, where the footer is
    ),
    min_size=1,
    max_size=4,
)


def hit(data: bytes, hits: list[tuple[str, float, int, bool]]) -> bytes:
    """The bytes after each of the damages."""
    out = bytearray(data)
    for kind, where, value, near_end in hits:
        if not out:
            break
        length = min(len(out), 3000) if near_end else len(out)
        at = len(out) - length + min(length - 1, int(where * length))
        if kind == "flip":
            out[at] ^= 1 << value % 8
        elif kind == "cut":
            del out[at : at + 1 + value]
        elif kind == "insert":
            out[at:at] = bytes([value]) * (1 + value % 9)
        elif kind == "zero":
            out[at : at + value] = bytes(len(out[at : at + value]))
        else:
            out[at:at] = out[at : at + 1 + value]
    return bytes(out)


@given(hits=HITS, split=st.sampled_from(["train", "val"]))
def test_any_damage_to_a_shard(proven: Place, hits: list[tuple[str, float, int, bool]], split: str) -> None:
    """Whatever is read is what was written."""
    root = proven.copy()
    shard = shard_of(root, split)
    shard.write_bytes(hit(shard.read_bytes(), hits))
    said = proven.reader.read(root)
    assert said == proven.says or (said.startswith("refused: ") and str(root) in said)


@given(hits=HITS, split=st.sampled_from(["train", "val"]))
def test_any_damage_to_a_shard_without_checksums(
    unproven: Place, hits: list[tuple[str, float, int, bool]], split: str
) -> None:
    """Other pixels may be read than were written, but nothing breaks."""
    root = unproven.copy()
    shard = shard_of(root, split)
    shard.write_bytes(hit(shard.read_bytes(), hits))
    said = unproven.reader.read(root)
    assert not said.startswith("refused: ") or str(root) in said


@given(hits=HITS)
def test_any_damage_to_the_bytes_of_a_manifest(proven: Place, hits: list[tuple[str, float, int, bool]]) -> None:
    root = proven.copy()
    manifest = root / "dataset.json"
    manifest.write_bytes(hit(manifest.read_bytes(), hits))
    said = proven.reader.read(root)
    assert said == proven.says or (said.startswith("refused: ") and str(root) in said)


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.integers(-3, 9),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.sampled_from(["../../etc/passwd", "train/part-00001.parquet", "0" * 64, "val"]),
    st.lists(st.integers(-2, 7), max_size=4),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
)


def nodes(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places in a tree of JSON, as keys from its root."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, child in inner for place in nodes(child, (*at, key)))]


@given(data=st.data(), sealed=st.booleans(), known=st.booleans())
def test_any_value_in_a_manifest(
    proven: Place, unproven: Place, data: st.DataObject, sealed: bool, known: bool
) -> None:
    """Also where its checksum fits, or it has none, and where the shards have none."""
    place = proven if known else unproven
    root = place.copy()
    content = unseal((root / "dataset.json").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        *above, last = data.draw(st.sampled_from([p for p in nodes(content) if p]))
        node = content
        for key in above:
            node = node[key]
        if data.draw(st.booleans()):
            node[last] = data.draw(ODD)
        else:
            node.pop(last)
    (root / "dataset.json").write_bytes(seal(content) if sealed else json.dumps(content).encode())
    said = place.reader.read(root)
    assert not said.startswith("refused: ") or str(root) in said


@pytest.mark.exhaustive
def test_the_reader_notices_a_crash_and_goes_on(proven: Place) -> None:
    """So that the properties above can fail."""
    proven.reader.process.kill()
    with pytest.raises(AssertionError, match="ended with"):
        proven.reader.read(proven.whole)
    assert proven.reader.read(proven.whole) == proven.says
