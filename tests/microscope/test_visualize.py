"""`mgdet visualize`: what it takes, what it writes, and how it answers what cannot be."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import mgdet
from mgdet.assign import MaxIoU, MutualGuidance
from mgdet.config import load
from mgdet.data import ShardedDataset
from mgdet.errors import CheckpointError, ConfigError, DataError
from mgdet.inference.load import load_detector
from mgdet.microscope.subject import COMPARED, choose_assigners, choose_images, find_subject, read_images, untrained
from mgdet.tracking import NullTracker
from mgdet.training.checkpoint import CheckpointStore
from mgdet.training.distributed import World
from mgdet.training.loop import Worker
from tests.small import small_experiment
from tests.trained_runs import call, import_job, refused, train

job = import_job("visualize")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The directory of a run with two checkpoints, of six images and three."""
    return Path(train(tmp_path_factory.mktemp("visualize"), "retinanet")[0].run_uri)


@pytest.fixture(scope="module")
def config(run, tmp_path_factory):
    """A configuration file alone, of the same data."""
    path = tmp_path_factory.mktemp("config") / "alone.yaml"
    path.write_text(small_experiment(run.parents[1]).to_yaml())
    return path


@pytest.fixture(scope="module")
def dataset(run):
    return ShardedDataset(load_detector(str(run)).experiment.data.uri, "val")


# --- what is written


@pytest.mark.slow
def test_a_run_is_shown_with_all_of_its_checkpoints(run, tmp_path):
    out = tmp_path / "seen"
    done = call(job, run, "--images", "9,8", "--assigners", "max_iou,mutual_guidance:sigma=3", "--out", out)
    assert done.status == 0, done.err
    assert str(out / "index.html") in done.out
    told = json.loads((out / "summary.json").read_text())
    assert "trained" in told["about"]["network"]
    steps = [info.step for info in CheckpointStore(str(run)).complete()]
    assert len(steps) == 2
    assert [(view["image"], view["step"]) for view in told["views"]] == [(i, s) for s in steps for i in (9, 8)]
    assert told["assigners"]["mutual_guidance:sigma=3"]["options"]["sigma"] == 3
    rows = pq.read_table(out / "assignments.parquet").to_pandas()
    for view in told["views"]:
        for name, tasks in view["assigners"].items():
            chosen = rows[(rows.image == view["image"]) & (rows.step == view["step"]) & (rows.assigner == name)]
            for key in ("cls", "loc"):
                of_task = chosen[chosen.task == key]
                assert (of_task.label == "positive").sum() == tasks[key]["positives"]
    assert len(list((out / "pictures").iterdir())) == 4


@pytest.mark.slow
def test_the_counts_are_those_of_the_assigner_on_the_loaded_detector(run, dataset, tmp_path):
    """The whole way from the file on disk, without anything of the microscope."""
    written = mgdet.visualize(run, tmp_path / "seen", images=[9], checkpoints=["last"], assigners=["mutual_guidance"])
    (view,) = json.loads(Path(written.summary).read_text())["views"]
    trained = load_detector(str(CheckpointStore(str(run)).path(CheckpointStore(str(run)).complete()[-1])))
    (batch,) = read_images(dataset, trained.experiment, choose_images(dataset, [9]))
    predictions = trained.detector(batch.images, batch.sizes)
    assignment = trained.experiment.assigner(predictions, batch.targets)
    for key in ("cls", "loc"):
        owner = getattr(assignment, key).gt_index[0]
        told = view["assigners"]["mutual_guidance"][key]
        assert told["positives_by_object"] == [int((owner == g).sum()) for g in range(batch.targets.boxes.shape[1])]
        assert told["ignored"] == int((owner == -2).sum())


@pytest.mark.slow
def test_a_configuration_alone_is_shown_untrained_and_the_page_says_so(config, tmp_path):
    done = call(job, config, "seed=4", "--images", "7", "--assigners", "atss", "--out", tmp_path / "seen")
    assert done.status == 0, done.err
    told = json.loads((tmp_path / "seen/summary.json").read_text())
    assert told["about"]["network"].startswith("UNTRAINED: the network before its first step, seed 4")
    assert "UNTRAINED: the network before its first step, seed 4" in (tmp_path / "seen/index.html").read_text()


# --- what is looked at


@pytest.mark.slow
def test_the_untrained_network_is_the_one_that_a_training_starts_from(run, tmp_path):
    experiment = load_detector(str(run)).experiment.model_copy(update={"name": "other", "storage": str(tmp_path)})
    worker = Worker(experiment, World(0, 1, torch.device("cpu")), NullTracker())
    torch.use_deterministic_algorithms(False)
    state = torch.get_rng_state()
    made = untrained(experiment, [c.name for c in worker.data.categories], torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), state)
    theirs = worker.detector.state_dict()
    assert made.state_dict().keys() == theirs.keys()
    assert all(torch.equal(value, theirs[key]) for key, value in made.state_dict().items())


@pytest.mark.slow
def test_checkpoints_are_chosen_by_word_and_step(run):
    def names(*words):
        return [state.name for state in find_subject(str(run), checkpoints=words).states]

    first, last = (info.step for info in CheckpointStore(str(run)).complete())
    assert names("all") == [f"step {first} (epoch 1)", f"step {last} (epoch 2)"]
    assert names("last", str(first)) == names("all")
    assert names("start", "last") == ["untrained", f"step {last} (epoch 2)"]
    file = CheckpointStore(str(run)).directory / f"step-{first:08d}.pt"
    (state,) = find_subject(str(file)).states
    assert state.name == f"step {first} (epoch 1)"
    chosen = find_subject(str(run), checkpoints=[str(first)]).states[0].load().state_dict()
    wanted = load_detector(str(file)).detector.state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in chosen.items())


@pytest.mark.slow
def test_assigners_are_chosen_by_name_and_options(config):
    experiment = load(config, ["assigner.sigma=5", "model.anchors.ratios=[1.0]"])
    assert next(iter(choose_assigners(experiment, None))) == "mutual_guidance"
    assert set(choose_assigners(experiment, None)) == set(COMPARED), "with one anchor at a location all are defined"
    assert next(iter(choose_assigners(load(config, ["assigner.name=paa"]), None))) == "paa"
    chosen = choose_assigners(experiment, ["mutual_guidance", "mutual_guidance:sigma=2", "max_iou:adopt=false"])
    own, other, last = chosen.values()
    assert isinstance(own, MutualGuidance)
    assert (own.sigma, other.sigma) == (5, 2)
    assert last == MaxIoU(adopt=False)
    fcos = experiment.model_copy(update={"model": load("bccd_fcos_atss").model})
    assert "max_iou" not in choose_assigners(fcos, None)


@pytest.mark.slow
def test_images_are_those_with_objects_unless_they_are_named(dataset):
    ids = dataset.image_ids.tolist()
    assert [ids[row] for row in choose_images(dataset, [9, 7, 9])] == [9, 7]
    rows = choose_images(dataset, None)
    assert rows == [row for row in range(len(dataset)) if len(dataset.annotation(row).boxes)]
    assert np.array_equal(sorted(rows), rows)


# --- what cannot be


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--images", "7,99"], r"has no image with the id 99. Its 3 images have the ids 7, 8, 9"),
        (["--images", ","], r"no images were named"),
        (["--assigners", "max_uoi"], r"assigner max_uoi: assigner.name = 'max_uoi': allowed are max_iou"),
        (["--assigners", "max_iou:positive_uoi=1"], r"Did you mean assigner.positive_iou\?"),
        (["--assigners", "max_iou:adopt"], r"an override is written key=value"),
        (["--assigners", ","], r"no assigners were named"),
        (["--checkpoints", "7"], r"has no checkpoint '7'. Allowed are all, best, last, start"),
        (["--checkpoints", ","], r"no checkpoints were named. Allowed are all"),
        (["--split", "test"], r"no split"),
        (["--near", "0"], r"near = 0: it must be at least 1"),
        (["seed=1"], r"seed cannot be set for weights that are trained already"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(run, tmp_path, options, said):
    out = tmp_path / "seen"
    assert re.search(said, refused(call(job, run, "--out", out, *options)))
    assert not out.exists()


@pytest.mark.slow
def test_neither_a_run_nor_a_configuration(run, tmp_path):
    with pytest.raises(ConfigError, match=r"runs/none is no run either.*no configuration of that name"):
        find_subject(str(tmp_path / "runs/none"))
    with pytest.raises(CheckpointError, match="a directory without a whole checkpoint"):
        find_subject(str(tmp_path))
    with pytest.raises(CheckpointError, match=r"alone.yaml is no run, so that it has no checkpoints"):
        find_subject(str(tmp_path / "alone.yaml"), checkpoints=["best"])
    with pytest.raises(CheckpointError, match="no such file"):
        find_subject(str(tmp_path / "none.pt"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full/a").touch()
    with pytest.raises(DataError, match="is not empty"):
        mgdet.visualize(run, tmp_path / "full")


@pytest.mark.slow
def test_a_data_set_of_other_classes_is_refused(config):
    subject = find_subject(str(config))
    subject.require_categories(subject.categories, "data/same")
    with pytest.raises(ConfigError, match=r"The classes of data/other are not those .* Set data.uri=data/other"):
        subject.require_categories(subject.categories[:2], "data/other")


@pytest.mark.slow
def test_an_assigner_that_is_not_defined_for_the_detector_is_refused(config):
    experiment = load(config)
    fcos = experiment.model_copy(update={"model": load("bccd_fcos_atss").model})
    with pytest.raises(ConfigError, match="points have no size"):
        choose_assigners(fcos, ["max_iou"])
