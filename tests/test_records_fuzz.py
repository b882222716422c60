"""Any damage to the records of a project: an error in a sentence, or nothing else is read than was written.

Whatever they say, nothing outside of their directory is read, written or removed, and nothing waits.
"""

import faulthandler
import hashlib
import io
import json
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mgdet import lease
from mgdet.config import Experiment
from mgdet.data.schema import read_manifest
from mgdet.data.shapes import generate_shapes
from mgdet.errors import MgdetError
from mgdet.lease import OWNER, claims, owned
from mgdet.provenance import made_by
from mgdet.records import plain, seal, unseal
from mgdet.runs.compare import compare_configuration, compare_data, compare_origin, table
from mgdet.runs.launch import training_data
from mgdet.runs.record import Record, begun_with, open_run, read_record, save_run, summarise, write_record
from mgdet.storage import Location, locate
from mgdet.structures import read_categories
from mgdet.sweep.config import Sweep, load_sweep
from mgdet.sweep.record import open_sweep
from mgdet.sweep.trials import TrialStore, definition
from mgdet.tracking import copies
from mgdet.tracking.copies import JournalCopies, begin
from mgdet.tracking.journal import Journal
from mgdet.training.checkpoint import UNFIT, CheckpointStore, weights_file
from mgdet.training.origin import data_of, data_of_run, learned_of
from mgdet.training.position import Position
from tests.fuzzing import HITS, ODD, change, hit
from tests.small import small_experiment
from tests.sweep.test_config import write

LONGEST_S = 120
"""For what takes milliseconds."""
NAMES = [
    *("runs/small/run.json", "runs/small/metrics.jsonl", "runs/small/journal/part-00000.jsonl"),
    *("runs/small/journal/begun", "runs/small/owner.json", "runs/s/sweep.json", "runs/s/s-000/trial.json"),
    *("runs/s/s-001/trial.json", "shapes/dataset.json"),
    *(f"runs/small/checkpoints/step-0000000{step}.json" for step in (3, 6)),
]
SECRETS = ("secret.pt", "secret.json", "step-00000006.pt")
CHECKPOINT = "runs/small/checkpoints/step-00000006.pt"


class Place(NamedTuple):
    """A project whose records are damaged, and what it said before."""

    whole: Path
    root: Path
    """Where its copies stand, each of which is damaged."""
    outside: Path
    experiment: Experiment
    sweep: Sweep
    data: dict[str, Any]
    says: set[str]
    """All that is read from it, and where one of its checkpoints is missing."""

    def __repr__(self) -> str:
        """In the report of a failing example."""
        return f"Place({self.root})"

    def copy(self) -> Path:
        shutil.rmtree(self.root, ignore_errors=True)
        return Path(shutil.copytree(self.whole, self.root))


@pytest.fixture(autouse=True, scope="module")
def _quickly() -> Iterator[None]:
    """Nothing waits for another machine or a better moment, and what hangs is ended with its stack."""
    with pytest.MonkeyPatch.context() as patch:
        for name, seconds in {"BEAT_S": 60.0, "DEAD_AFTER_S": 0.0, "_POLL_S": 0.0}.items():
            patch.setattr(lease, name, seconds)
        patch.setattr(copies, "PAUSES_S", (0.0, 0.0))
        yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A run of two checkpoints, a sweep of two trials, a data set, and files beside them that are nobody's business."""
    directory = tmp_path_factory.mktemp("records")
    whole, root, outside = directory / "whole", directory / "project", directory / "outside"
    outside.mkdir()
    for name in SECRETS:
        (outside / name).write_bytes(b"PLANTED")
    experiment = small_experiment(root)
    generate_shapes(experiment.data.uri, experiment.data.generate)
    data = training_data(experiment.data)[1]
    save_run(experiment, experiment, {"mlflow": "0a1b"}, data)
    run = Path(experiment.run_uri)
    store = CheckpointStore(experiment.run_uri)
    for step in (3, 6):
        store.save(state_of(experiment, data, step), step=step, epoch=step // 3, metrics={"val/AP": step / 10})
    journal = Journal(run / "metrics.jsonl")
    for step in (3, 6):
        journal.append({"train/loss": 1 / step, "val/AP": step / 10}, step=step, time=1.5e9)
    journal.close()
    begin(locate(run / "journal"))
    shutil.copy(run / "metrics.jsonl", run / "journal" / "part-00000.jsonl")
    with owned(locate(run / OWNER), "the run"):
        (mine,) = claims(locate(run / OWNER)).values()
        kept = unseal(mine)
    (run / OWNER).write_bytes(seal({**kept, "started": kept["started"] + 1}))  # its process is gone
    sweep = load_sweep(write(directory))
    trials = TrialStore(str(root / "runs" / "s"), "s")
    values = {key: domain.encode(domain.options()[0]) for key, domain in sweep.space.items()}
    for _ in range(2):
        trials.new(sweep, values, {key: sweep.space[key].decode(value) for key, value in values.items()})
    trials.trials[0].add(1, {"val/AP": 0.25})
    trials.save(trials.trials[0])
    record = Record(definition(sweep), {"mlflow": "2c3d"}, {experiment.data.uri: data}, made_by())
    write_record(locate(root / "runs" / "s" / "sweep.json"), "definition", record)
    root.rename(whole)
    found = Place(whole, root, outside, experiment, sweep, data, set())
    for missing in (None, 3, 6):
        found.copy()
        if missing:
            (root / f"runs/small/checkpoints/step-0000000{missing}.json").unlink()
        found.says.update(line for lines in read(found).values() for line in lines)
    assert not any(line.startswith("refused") for line in found.says), found.says
    return found


def state_of(experiment: Experiment, data: dict[str, Any], step: int) -> dict[str, Any]:
    """A checkpoint's content but for its weights."""
    return {
        "model": {},
        "position": {"epoch": step // 3, "step": step, "metrics": {}, "world": 1, "batch_size": 2, "done": []},
        "config": experiment.to_yaml(),
        "categories": json.dumps(data["classes"]),
        "data": json.dumps(data),
        "made_by": json.dumps(made_by()),
        "format": 1,
    }


def read(place: Place) -> dict[str, list[str]]:
    """What is found by each part of a start, a line for each thing; or the sentence with which it is refused."""
    e, run = place.experiment, Path(place.experiment.run_uri)
    store, here = CheckpointStore(e.run_uri), Path(e.run_uri) / "elsewhere" / "metrics.jsonl"

    def of_the_run() -> list[str]:
        record = open_run(e, place.data)
        if record is None:
            return []
        rows = compare_origin(record.made_by, made_by(), False) + compare_configuration(record.identity, e)
        table([*rows, *compare_data(record.data, place.data)])
        return [repr(record), repr(begun_with(e)), repr(data_of_run(e))]

    def of_the_newest() -> list[str]:
        newest = store.latest()
        if newest is None:
            return []
        state = newest[1]
        lines = [repr(newest[0]), repr(data_of(state)), repr(learned_of(state))]
        for judge in (lambda: Position.read(state["position"]), lambda: read_categories(state.get("categories"))):
            try:
                lines.append(repr(judge()))
            except UNFIT as error:
                lines.append(f"refused: {error}")
        return lines

    def of_the_copies() -> list[str]:
        kept = JournalCopies(here, locate(run / "journal"))
        assert kept.restore() or True
        kept.finish()
        return [repr(point) for point in Journal(here).points()]

    def of_the_sweep() -> list[str]:
        trials = TrialStore(str(run.parent / "s"), "s")
        trials.require(place.sweep)
        open_sweep(place.sweep, str(run.parent / "s"))
        known = read_record(locate(run.parent / "s" / "sweep.json"), "definition")
        return [repr(trial) for trial in trials.trials] + [repr(known)]

    def of_its_owner() -> list[str]:
        with owned(locate(run / OWNER), f"the run {run}"):
            return []

    parts: dict[str, Callable[[], list[str]]] = {
        "its owner": of_its_owner,
        "the run": of_the_run,
        "its summary": lambda: [repr(found) for found in (summarise(e),) if found],
        "its checkpoints": lambda: [repr(info) for info in (*store.committed(), *store.complete())],
        "its newest": of_the_newest,
        "its weights": lambda: [weights_file(e.run_uri)],
        "its metrics": lambda: [repr(point) for point in Journal(run / "metrics.jsonl").points()],
        "its copies": of_the_copies,
        "the sweep": of_the_sweep,
        "the data set": lambda: [repr(read_manifest(e.data.uri)), repr(training_data(e.data))],
    }
    said = {}
    for name, part in parts.items():
        faulthandler.dump_traceback_later(LONGEST_S, exit=True)
        try:
            said[name] = part()
        except MgdetError as error:
            said[name] = [f"refused: {error}"]
    refusals = [lines[0] for lines in said.values() if lines and lines[0].startswith("refused: ")]
    assert all(str(place.root) in refusal for refusal in refusals), refusals
    return said


def write_on(place: Place) -> None:
    """Go on after a damaged record, as far as that is not refused: what is written removes what is old."""
    store = CheckpointStore(place.experiment.run_uri)
    for step in (9, 12, 15):
        store.save({"model": {}}, step=step, epoch=step // 3, metrics={})


@pytest.fixture(scope="module")
def opened() -> Iterator[list[str]]:
    """The paths that are opened, written or removed through `Location`, by which all names in records go."""
    found: list[str] = []

    def noting(name: str) -> None:
        whole = getattr(Location, name)

        def noted(self: Location, *args: Any) -> Any:
            found.append(self.path)
            return whole(self, *args)

        patch.setattr(Location, name, noted)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("open_input", "open_output", "read_bytes", "replace", "delete", "mkdir", "clear", "children"):
            noting(name)
        yield found


def check(place: Place, opened: list[str]) -> dict[str, list[str]]:
    """Read everything and go on; returns what was read. Fails where anything outside was touched."""
    opened.clear()
    said = read(place)
    write_on(place)
    outside = [path for path in opened if not Path(path).resolve().is_relative_to(place.root)]
    assert not outside
    assert {p.name: p.read_bytes() for p in place.outside.iterdir()} == dict.fromkeys(SECRETS, b"PLANTED")
    return said


@pytest.mark.slow
@given(hits=HITS, name=st.sampled_from([*NAMES, CHECKPOINT]))
def test_any_damage_to_the_bytes_of_a_record(
    place: Place, opened: list[str], hits: list[tuple[str, float, int, bool]], name: str
) -> None:
    """Whatever is read was written so: of a damaged record nothing, and of a journal the lines that are whole."""
    file = place.copy() / name
    file.write_bytes(hit(file.read_bytes(), hits))
    for part, lines in check(place, opened).items():
        if not lines or not lines[0].startswith("refused: "):
            assert set(lines) <= place.says, (part, name)


WORSE = st.one_of(
    ODD,
    st.sampled_from(
        [
            *("../../outside/secret.pt", "../outside", "step-00000003.pt", "/etc/hostname", "\x00", "s-001", "auto"),
            *([[1, "x"], [1, "x"]], [[True, "x"]], {"classes": [1]}, {"splits": {"train": 3}}, [[]], 2**53),
        ]
    ),
)
"""Also values that mean something where they stand."""


@pytest.mark.slow
@given(data=st.data(), name=st.sampled_from(NAMES), sealed=st.booleans())
def test_any_value_in_a_record(place: Place, opened: list[str], data: st.DataObject, name: str, sealed: bool) -> None:
    """Also where its checksum fits, as if somebody meant it, or where it has none, as in earlier versions."""
    file = place.copy() / name
    if name.endswith("begun"):
        file.write_text(data.draw(st.text(max_size=40)))
    elif name.endswith(".jsonl"):
        lines = [json.loads(line) for line in file.read_bytes().splitlines()]
        for line in lines:
            line.pop("crc")
        change(lines, data, WORSE)
        file.write_bytes(b"".join(line_of(line, sealed) for line in lines))
    else:
        content = unseal(file.read_bytes())
        change(content, data, WORSE)
        content = {k: v for k, v in content.items() if k not in ("sealed", "checksum")}
        file.write_bytes(seal(content) if sealed else json.dumps(plain(content)).encode())
    check(place, opened)


def line_of(record: Any, sealed: bool) -> bytes:
    if sealed and isinstance(record, dict):
        crc = zlib.crc32(json.dumps(record, separators=(",", ":")).encode())
        record = {**record, "crc": f"{crc:08x}"}
    return json.dumps(record, separators=(",", ":")).encode() + b"\n"


@pytest.mark.slow
@given(data=st.data(), lost=st.booleans())
def test_any_value_in_a_checkpoint(place: Place, opened: list[str], data: st.DataObject, lost: bool) -> None:
    """Whose record fits it; also where `run.json` is `lost`, so that the checkpoint says what the run is."""
    root = place.copy()
    state = state_of(place.experiment, place.data, 6)
    texts = st.sampled_from(
        ["[" * 100_000, "{}", "[[1]]", "a: &a [*a]", "9" * 5000, '{"classes": [1]}', "null", "1: 2"]
    )
    change(state, data, st.one_of(WORSE, texts))
    buffer = io.BytesIO()
    torch.save(state, buffer)
    file = root / CHECKPOINT
    file.write_bytes(buffer.getvalue())
    sidecar = file.with_suffix(".json")
    fits = {"size": len(buffer.getvalue()), "sha256": hashlib.sha256(buffer.getvalue()).hexdigest()}
    sidecar.write_bytes(seal({**unseal(sidecar.read_bytes()), **fits}))
    if lost:
        (root / "runs" / "small" / "run.json").unlink()
    check(place, opened)
