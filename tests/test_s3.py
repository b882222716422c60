"""Runs and data in an object store: everything goes through a server on this machine that speaks S3."""

import contextlib
import multiprocessing
import os
import signal

import pytest

from mgdet import lease
from mgdet.errors import DataError, OwnedError
from mgdet.lease import OWNER, claims, owned
from mgdet.records import unseal
from mgdet.runs.compare import compare_metrics
from mgdet.runs.reproduce import journal_of
from mgdet.storage import Location, locate
from mgdet.training.checkpoint import CheckpointStore
from tests.buckets import experiment_in_a_bucket as experiment
from tests.buckets import job
from tests.faults import same, weights
from tests.forked import Job, run_job
from tests.tracking_servers import wait_for

pytestmark = pytest.mark.slow


def test_a_killed_training_goes_on_and_its_detector_is_judged_and_used(uri, tmp_path):
    """Train, kill, train again, evaluate, predict: data and run are in the bucket, and nothing of them is here."""
    e = experiment(tmp_path, uri)
    path, log = job(e, tmp_path)
    store = CheckpointStore(e.run_uri)
    killed = Job("train", [path], log, directory=tmp_path)
    wait_for(lambda: killed.poll() is not None or store.committed(), 300)
    killed.send_signal(signal.SIGKILL)
    killed.wait(60)
    assert 0 < store.committed()[-1].step < 12, log.read_text()

    another_machine = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "empty")}
    done = run_job("train", [path], log, directory=tmp_path, environment=another_machine)
    assert done.returncode == 0, done.output
    assert "continu" in done.output
    assert store.committed()[-1].step == 12

    undisturbed = experiment(tmp_path, uri, name="undisturbed")
    path, log = job(undisturbed, tmp_path)
    assert run_job("train", [path], log, directory=tmp_path).returncode == 0, log.read_text()
    assert same(weights(e), weights(undisturbed))
    assert compare_metrics(journal_of(undisturbed), journal_of(e)).first == ""

    judged = run_job("evaluate", [e.run_uri, "--json", tmp_path / "judged.json"], tmp_path / "evaluate.log")
    assert judged.returncode == 0, judged.output
    assert "val/AP" in (tmp_path / "judged.json").read_text()

    (tmp_path / "photo.png").write_bytes(photo(e))
    found = tmp_path / "found"
    used = run_job("predict", [e.run_uri, tmp_path / "photo.png", "--out", found], tmp_path / "predict.log")
    assert used.returncode == 0, used.output
    assert any(found.iterdir())
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "shapes").exists()


def photo(e):
    """The bytes of an image of the data set."""
    import pyarrow.parquet as pq

    split = locate(e.data.uri) / "val"
    name = next(n for n in sorted(split.children()) if n.endswith(".parquet"))
    with (split / name).open_input() as file:
        return pq.read_table(file).column("image")[0].as_py()


def test_a_bucket_that_is_not_there_is_named(uri, tmp_path):
    e = experiment(tmp_path, uri, storage=uri("x").replace("bucket/x", "nowhere/runs"), tracking__enabled=False)
    path, log = job(e, tmp_path)
    done = run_job("train", [path], log, directory=tmp_path)
    assert done.returncode == 2, done.output
    assert "nowhere" in done.output
    assert "Traceback" not in done.output


def meanwhile(monkeypatch, *acts):
    """Let another process do something between the opening of a file and the reading of it, once for each opening."""
    opened, left = Location._open_stream, list(acts)

    def open_stream(self):
        stream = opened(self)
        if left:
            left.pop(0)()
        return stream

    monkeypatch.setattr(Location, "_open_stream", open_stream)


def test_a_file_that_is_replaced_or_removed_while_it_is_read(uri, monkeypatch):
    """A store gives as many bytes as it said, of whatever is there by then."""
    file = locate(uri("changing"))
    for before, now in [(b"a long one", b"short"), (b"short", b"a long one"), (b"one", b"two"), (b"", b"more")]:
        file.write(before)
        meanwhile(monkeypatch, lambda now=now: file.write(now))
        assert file.read_bytes() == now, (before, now)
    meanwhile(monkeypatch, file.delete)
    with pytest.raises(FileNotFoundError):
        file.read_bytes()
    file.write(b"old")
    meanwhile(monkeypatch, lambda: (file.delete(), file.write(b"other")))
    assert file.read_bytes() == b"other"
    meanwhile(monkeypatch, *(lambda n=n: file.write(b"%d" % n) for n in range(40)))
    with pytest.raises(OSError, match="changed each of the 10 times"):
        file.read_bytes()


# --- owners

CONTEXT = multiprocessing.get_context("spawn")  # AWS's library does not survive a fork


def on_machine(machine: str, **seconds: float) -> None:
    """Let this process be on another machine, and keep to other times."""
    lease._machine = lambda: machine
    for name, value in seconds.items():
        setattr(lease, name, value)


def compete(place, number, begin, over, owners):
    """One of several that start together, each on a machine of its own; the winner stays until all know."""
    on_machine(f"machine {number}", BEAT_S=0.2, DEAD_AFTER_S=60.0, _POLL_S=0.1)
    try:
        begin.wait(600)
        with contextlib.suppress(OwnedError), owned(locate(place) / OWNER, "the run"):
            owners.put(number)
            over.wait(600)
            return
        over.wait(600)
    except BaseException:
        over.abort()  # the others need not wait
        raise


def test_one_owner_in_a_bucket(uri):
    """Of three machines that start together one wins, and the others are refused."""
    begin, over, owners = CONTEXT.Barrier(3), CONTEXT.Barrier(3), CONTEXT.Queue()
    processes = [CONTEXT.Process(target=compete, args=(uri("together"), n, begin, over, owners)) for n in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(600)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert owners.get(timeout=60) in range(3)
    assert owners.empty()
    assert not claims(locate(uri("together")) / OWNER)


def hold(place, ready):
    on_machine("another machine", BEAT_S=0.2)
    with owned(locate(place) / OWNER, "the run"):
        ready.set()
        CONTEXT.Event().wait()


def test_a_dead_owner_in_a_bucket_is_followed(uri, monkeypatch):
    """One on another machine, whose process nobody can look at: refused while it shows itself, then followed."""
    ready, file = CONTEXT.Event(), locate(uri("held")) / OWNER
    process = CONTEXT.Process(target=hold, args=(uri("held"), ready))
    process.start()
    assert ready.wait(600)
    for name, seconds in {"DEAD_AFTER_S": 60.0, "_POLL_S": 0.1}.items():
        monkeypatch.setattr(lease, name, seconds)
    with (
        pytest.raises(OwnedError, match=rf"the run is being written by process {process.pid} on"),
        owned(file, "the run"),
    ):
        pytest.fail("two owners")
    process.kill()
    process.join()
    monkeypatch.setattr(lease, "DEAD_AFTER_S", 1.0)
    with owned(file, "the run"):
        (data,) = claims(file).values()
        assert unseal(data)["pid"] == os.getpid()
    assert not claims(file)


def test_two_drivers_on_one_run_in_a_bucket(uri, tmp_path):
    """Started together, with two learning rates: one trains to its end, the other one never touches the run."""
    jobs = []
    for rate in (1e-3, 5e-2):
        directory = tmp_path / f"{rate:g}"
        directory.mkdir()
        optimizer = {"name": "sgd", "lr": rate, "momentum": 0}
        path, log = job(experiment(tmp_path, uri, name="both", train__optimizer=optimizer), directory)
        jobs.append((Job("train", [path], log, directory=tmp_path), rate, log))
    statuses = {rate: driver.wait(600) for driver, rate, _ in jobs}
    logs = {rate: log.read_text() for _, rate, log in jobs}
    assert sorted(statuses.values()) == [0, 2], logs
    winner, loser = sorted(statuses, key=statuses.get)
    assert "is being written by process" in logs[loser] or "exists with another configuration" in logs[loser]
    record = unseal((locate(uri("runs/both")) / "run.json").read_bytes())
    assert record["learned"]["train.optimizer.lr"] == winner
    assert CheckpointStore(uri("runs/both")).committed()[-1].step == 12
    assert not claims(locate(uri("runs/both")) / OWNER)


def test_an_import_from_a_bucket_into_a_bucket(uri, tmp_path):
    """Images, annotations and destination: the bytes of an import on the disk, by one process and in portions."""
    from mgdet.data import import_annotations, read_manifest
    from mgdet.data.formats.coco import Coco
    from mgdet.data.import_shared import ImportPlan
    from tests.data.scenes import Scene

    scene = Scene(tmp_path, count=5)
    scene.prepare(name="same")
    for path in (tmp_path / "train.json", *scene.images.iterdir()):
        locate(uri(f"source/{path.relative_to(tmp_path)}")).write(path.read_bytes())
    splits = [("train", (uri("source/train.json"), uri("source/images")))]

    def killed(work, wanted):
        yield work(wanted[0])
        if type(work).__name__ == "Writing":
            raise RuntimeError

    def here(work, wanted):
        yield from map(work, wanted)

    import_annotations(uri("prepared/one"), Coco(), splits, name="same")
    with pytest.raises(RuntimeError):
        ImportPlan(uri("prepared/two"), Coco(), splits, name="same").run(killed)
    with pytest.raises(DataError, match="No data set at"):
        read_manifest(uri("prepared/two"))
    ImportPlan(uri("prepared/two"), Coco(), splits, name="same").run(here)
    for name in ("dataset.json", "train/part-00000.parquet"):
        expected = (scene.out / name).read_bytes()
        assert [(locate(uri(f"prepared/{each}")) / name).read_bytes() for each in ("one", "two")] == [expected] * 2
    assert locate(uri("prepared")).children().keys() == {"one", "two"}
