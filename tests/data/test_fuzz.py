"""Any damage to a data set's manifest or shards is `DataError`, or changes nothing that is read: no traceback, no hang.

In the exhaustive tier each example is read in another process, because a reader of broken files might end the one that
it runs in.
"""

import hashlib
import json
import multiprocessing
import shutil
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mgdet.data import ShapesConfig, ShardedDataset, generate_shapes
from mgdet.errors import DataError
from mgdet.records import seal, unseal
from tests.conftest import runs
from tests.data.damages import forget_proofs, shard_of
from tests.fuzzing import HITS, change, hit

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


class Here:
    """Reads data sets in this process: for few examples, another one would take longer to start."""

    def read(self, root: Path) -> str:
        """What `read` says there."""
        return read(str(root))


class Place(NamedTuple):
    """A whole data set, and a directory in which copies of it are damaged."""

    whole: Path
    directory: Path
    reader: Reader | Here
    says: str
    """What is read there."""

    def copy(self) -> Path:
        target = self.directory / "copy"
        shutil.rmtree(target, ignore_errors=True)
        return Path(shutil.copytree(self.whole, target))


@pytest.fixture(scope="module")
def reader(request: pytest.FixtureRequest) -> Iterator[Reader | Here]:
    if not runs(request.config, "exhaustive"):
        yield Here()
        return
    reader = Reader()
    yield reader
    reader.process.kill()


@pytest.fixture(scope="module")
def proven(tmp_path_factory: pytest.TempPathFactory, reader: Reader | Here) -> Place:
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


@given(data=st.data(), sealed=st.booleans(), known=st.booleans())
def test_any_value_in_a_manifest(
    proven: Place, unproven: Place, data: st.DataObject, sealed: bool, known: bool
) -> None:
    """Also where its checksum fits, or it has none, and where the shards have none."""
    place = proven if known else unproven
    root = place.copy()
    content = unseal((root / "dataset.json").read_bytes())
    change(content, data)
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
