"""Rare faults on a real cluster: two starts at once, fewer nodes than the least, a disk that fills."""

import os
import shutil
import signal
from pathlib import Path

import pytest

from mgdet.lease import OWNER
from mgdet.training.checkpoint import CheckpointStore
from tests.cluster.clusters import Head, ray_cluster
from tests.cluster.runs import checkpoints, experiment, job, wait
from tests.cluster.test_nodes import latest, sizes
from tests.cluster.test_submit import settings
from tests.cluster.test_tune import write
from tests.faults import disk_of, same, weights
from tests.forked import Job
from tests.tracking_servers import wait_for

pytestmark = [pytest.mark.exhaustive, pytest.mark.usefixtures("no_ray_left_behind")]

ROOT = Path(__file__).parents[2]
FULL = "No space left on device"


def test_two_submits_of_one_run_at_once(tmp_path):
    """One trains to its end, the other one ends with a sentence and writes nothing."""
    head = Head().wait()
    try:
        command = ["--", *settings(tmp_path, 3)]
        for name in ("one", "two"):
            done = head.job("submit", "--no-wait", "--submission-id", name, "--working-dir", ROOT, *command)
            assert done.returncode == 0, done.stderr
        wait_for(lambda: all(head.client.get_job_status(name).is_terminal() for name in ("one", "two")), 600)
        logs = {head.client.get_job_status(name).value: head.client.get_job_logs(name) for name in ("one", "two")}
        assert logs.keys() == {"SUCCEEDED", "FAILED"}, logs
        assert "is being written by process" in logs["FAILED"]
    finally:
        head.kill()
    run = tmp_path / "runs" / "quickstart"
    assert not (run / OWNER).exists()
    assert CheckpointStore(str(run)).latest()[0].epoch == 3


def test_two_sweeps_of_one_name_at_once(tmp_path, shared_cluster):
    cluster = {"cluster.workers": 1, "cluster.address": shared_cluster.address}
    path = write(tmp_path, set={**cluster, "train.epochs": 2}, trials=2)
    logs = [tmp_path / f"{n}.log" for n in range(2)]
    jobs = [Job("tune", [path], log, directory=tmp_path) for log in logs]
    statuses = [each.wait(600) for each in jobs]
    said = [log.read_text() for log in logs]
    assert sorted(statuses) == [0, 2], said
    assert "the sweep" in said[statuses.index(2)]
    assert "is being written by process" in said[statuses.index(2)]
    names = sorted(p.parent.name for p in (tmp_path / "runs" / "s").glob("*/trial.json"))
    assert names == ["s-000", "s-001"]


def test_elastic_workers_below_their_minimum_wait_for_a_node_and_say_so(tmp_path):
    log = tmp_path / "log"
    with ray_cluster(num_cpus=0) as cluster:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        place = {"cluster__address": cluster.address, "cluster__cpus_per_worker": 1}
        elastic = {"cluster__resize_interval_s": 2, "cluster__start_timeout_s": 10}
        changes = {"data__generate__train": 24, "train__epochs": 1000, "train__evaluate_every": 500}
        e = experiment(tmp_path, "least", (2, 3), train__batch_size=6, **changes, **place, **elastic)
        process = job(e, tmp_path, log)
        try:
            wait(process, lambda: latest(e) >= 4)
            cluster.remove_node(nodes[1], allow_graceful=False)
            wait(process, lambda: "needs at least 2: it waits for a node" in log.read_text())
            assert process.poll() is None
            before = latest(e)
            cluster.add_node(num_cpus=1)
            wait(process, lambda: latest(e) >= before + 4)
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=300) == 143, log.read_text()[-3000:]
        finally:
            process.kill()
    assert sizes(log) == [2, 2]


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 64 MiB."""
    with disk_of(64, tmp_path / "disk") as disk:
        yield disk


def test_the_disk_of_a_node_fills(tmp_path, small_disk, shared_cluster, undisturbed):
    """Checkpoints, journal and Ray's own records have no room for a while. It may go on or end with a sentence; what
    was saved stays, and the same command comes to the weights of an undisturbed run."""
    log, filler = tmp_path / "log", small_disk / "filler"
    e = experiment(tmp_path, "full", cluster__address=shared_cluster.address)
    e = e.model_copy(update={"storage": str(small_disk)})
    process = job(e, tmp_path, log)
    try:
        wait(process, lambda: checkpoints(e) >= 2)
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(small_disk).free)
        wait(process, lambda: FULL in log.read_text())
        kept = CheckpointStore(e.run_uri).latest()
        assert kept is not None
        filler.unlink()
        wait(process)
    finally:
        process.kill()
    assert process.returncode in (0, 2), log.read_text()[-3000:]
    if process.returncode:
        again = job(e, tmp_path, tmp_path / "again")
        assert again.wait(timeout=600) == 0, (tmp_path / "again").read_text()[-3000:]
    assert same(weights(e), undisturbed(2))
