"""Trainings over several nodes: the same result as on one, nodes that come and go, paths that they do not share."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mgdet.cluster.session import check_shared, session
from mgdet.cluster.train import run
from mgdet.errors import ClusterError
from mgdet.runs.config import ClusterConfig
from tests.cluster.clusters import ray_cluster
from tests.cluster.runs import checkpoints, experiment, job, note_cost, one_on_each_node, wait
from tests.faults import same, step_records, weights

pytestmark = pytest.mark.usefixtures("no_ray_left_behind")


def curve(e):
    """The loss of each step and each evaluation, from the journal."""
    lines = [json.loads(line) for line in (Path(e.run_uri) / "metrics.jsonl").read_text().splitlines()]
    kept = ("train/loss", "val/AP")
    return [(line["step"], key, line["metrics"][key]) for line in lines for key in kept if key in line["metrics"]]


@pytest.mark.exhaustive
@pytest.mark.parametrize("nodes", [2, 3])
def test_workers_on_several_nodes_learn_what_they_learn_on_one(tmp_path, nodes):
    changes = {"train__batch_size": 6, "train__epochs": 3}
    alone = experiment(tmp_path, "alone", nodes, **changes)
    run(alone)
    with ray_cluster(num_cpus=0) as cluster:
        for _ in range(nodes):
            cluster.add_node(num_cpus=1)
        spread = {"cluster__address": cluster.address, "cluster__cpus_per_worker": 1}  # one fits on each node
        e = experiment(tmp_path, "spread", nodes, **changes, **spread)
        run(e)
    assert curve(e) == curve(alone)
    assert len([c for c in curve(e) if c[1] == "train/loss"]) == 3 * 2
    assert same(weights(e), weights(alone))


@pytest.mark.slow
def test_a_local_path_that_a_node_does_not_share_is_refused(tmp_path, shared):
    """The second node sees another (empty) file system under the same path, as a machine of its own would."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("may not make a mount namespace here")
    mine, shared_path = tmp_path / "mine", tmp_path / "shared"
    mine.mkdir()
    address = shared["cluster__address"]
    ray = Path(sys.executable).with_name("ray")
    start = f"{ray} start --address={address} --num-cpus=1 --block --min-worker-port=0 --max-worker-port=0"
    node = subprocess.Popen(
        ["unshare", "-m", "sh", "-c", f"mount -t tmpfs none {mine} && exec {start}"],
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        with session(ClusterConfig(address=address)) as before:
            count = len(before.nodes)
            deadline = time.time() + 120
            while count < 2:
                import ray as api

                count = sum(n["Alive"] for n in api.nodes())
                assert time.time() < deadline
                time.sleep(0.5)
            check_shared({"data.uri": str(shared_path)})
            with pytest.raises(ClusterError) as error:
                check_shared({"storage": str(mine / "runs"), "data.uri": str(shared_path)})
    finally:
        os.killpg(node.pid, signal.SIGTERM)
        node.wait(timeout=60)
    text = str(error.value)
    assert f"storage = {mine}/runs is another directory on" in text
    assert "data.uri =" not in text
    assert "s3://" in text
    assert not list(shared_path.iterdir())  # the mark is gone
    shutil.rmtree(mine)


def latest(e):
    """The step of the newest checkpoint."""
    names = [p.stem for p in Path(e.run_uri).glob("checkpoints/*.json")]
    return max((int(re.findall(r"\d+", name)[-1]) for name in names), default=0)


@pytest.mark.exhaustive
def test_a_lost_node_whose_successor_comes_later(tmp_path, undisturbed):
    """Two workers for two nodes. One is lost; the run waits for another one and goes on, bit for bit."""
    with ray_cluster(num_cpus=0) as cluster:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        e = experiment(tmp_path, "waiting", cluster__address=cluster.address, cluster__cpus_per_worker=1)
        process = job(e, tmp_path, tmp_path / "log")
        try:
            wait(process, lambda: checkpoints(e) >= 2)
            cluster.remove_node(nodes[1], allow_graceful=False)
            time.sleep(5)
            reached = latest(e)
            time.sleep(5)
            assert process.poll() is None
            assert latest(e) == reached  # it waits
            cluster.add_node(num_cpus=1)
            wait(process)
        finally:
            process.kill()
        assert process.returncode == 0, (tmp_path / "log").read_text()[-3000:]
    assert same(weights(e), undisturbed(2))
    note_cost("node lost, another one 10 s later", e)


def sizes(log):
    """How many workers there were at each start of the workers."""
    return [int(n) for n in re.findall(r"(\d+) workers, rank 0", log.read_text())]


def assert_each_step_is_one_of_12_in_an_epoch(e):
    """24 images in batches of 2 by one worker or by two; returns the number of steps, of which none is missing."""
    records = step_records(Path(e.run_uri) / "metrics.jsonl")
    epochs = {record["step"]: record["metrics"]["epoch"] for record in records}
    assert sorted(epochs) == list(range(1, len(epochs) + 1))
    assert all(epoch == pytest.approx(step / 12) for step, epoch in epochs.items())
    return len(epochs)


@pytest.mark.slow
def test_a_training_takes_the_node_that_comes(tmp_path, shared, add_node):
    """From one worker to two in mid-run; the steps stay as large as they were, and none is left out."""
    log = tmp_path / "log"
    add_node()
    changes = {"data__generate__train": 24, "train__epochs": 1000, "train__evaluate_every": 500}
    place = {**one_on_each_node(shared), "cluster__resize_interval_s": 2}
    e = experiment(tmp_path, "growing", (1, 2), **changes, **place)
    process = job(e, tmp_path, log)
    try:
        wait(process, lambda: latest(e) >= 4)
        add_node()
        wait(process, lambda: sizes(log) == [1, 2])
        grown = latest(e)
        wait(process, lambda: latest(e) >= grown + 4)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=300) == 143, log.read_text()[-3000:]
    finally:
        process.kill()
    assert sizes(log) == [1, 2]
    assert assert_each_step_is_one_of_12_in_an_epoch(e) >= grown + 4


@pytest.mark.exhaustive
def test_elastic_workers_grow_and_shrink_with_the_cluster(tmp_path):
    """From one node to two and back. Each step is done with the same global batch, and none is left out."""
    log = tmp_path / "log"
    with ray_cluster(num_cpus=0) as cluster:
        cluster.add_node(num_cpus=1)
        place = {"cluster__address": cluster.address, "cluster__cpus_per_worker": 1}
        elastic = {"cluster__resize_interval_s": 2, "cluster__start_timeout_s": 10}
        changes = {"data__generate__train": 24, "train__epochs": 40, "train__evaluate_every": 20}
        e = experiment(tmp_path, "elastic", (1, 2), **changes, **place, **elastic)
        process = job(e, tmp_path, log)
        try:
            wait(process, lambda: latest(e) >= 4)
            node = cluster.add_node(num_cpus=1)
            wait(process, lambda: sizes(log) == [1, 2])
            grown = latest(e)
            wait(process, lambda: latest(e) >= grown + 4)
            cluster.remove_node(node, allow_graceful=False)
            wait(process, lambda: sizes(log) == [1, 2, 1])
            assert latest(e) < 480, "the run was over before the node went"
            wait(process)
        finally:
            process.kill()
        assert process.returncode == 0, log.read_text()[-3000:]
    assert sizes(log) == [1, 2, 1]
    note_cost("elastic: node comes, node lost", e)  # sees that no step is missing
    assert assert_each_step_is_one_of_12_in_an_epoch(e) == 480  # 40 epochs
