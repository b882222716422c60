"""A run goes on with the data that it began with; what differs is named."""

import copy
import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from mgdet.cluster import tune
from mgdet.data.fingerprint import data_differences, describe_data, fingerprint, short
from mgdet.data.schema import read_manifest
from mgdet.data.shapes import ShapesConfig, generate_shapes
from mgdet.data.writer import write_dataset
from mgdet.errors import ConfigError
from mgdet.records import seal, unseal
from mgdet.runs.config import ClusterConfig
from mgdet.runs.launch import prepare, train_in_process, training_data, training_images
from mgdet.runs.record import Record, open_run, save_run, write_record
from mgdet.storage import locate
from mgdet.structures import Category
from mgdet.sweep.config import load_sweep
from mgdet.sweep.record import require_data_of_sweep, require_data_of_trial
from mgdet.tracking import NullTracker
from mgdet.training.checkpoint import CheckpointStore
from mgdet.training.distributed import World
from mgdet.training.loop import Worker
from mgdet.training.nonfinite import capture, load_capture
from mgdet.training.origin import data_of
from mgdet.training.position import Position
from tests.data.test_dataset import CLASSES, records
from tests.small import small_experiment
from tests.sweep.test_config import write

CPU = World(0, 1, torch.device("cpu"))


def of(path, *splits):
    return fingerprint(read_manifest(str(path)), splits or ("train", "val"))


@pytest.fixture
def data(tmp_path):
    """Writes a data set of two classes and two splits, with some rows and classes changed."""

    def make(name, change=lambda row: row, classes=CLASSES, train=8):
        splits = {"train": map(change, records(train)), "val": records(4)}
        write_dataset(tmp_path / name, splits, name="x", categories=classes, overwrite=True)
        return of(tmp_path / name)

    return make


# --- the fingerprint


def test_equal_data_have_equal_fingerprints(data):
    assert data("a") == data("b")
    assert json.loads(json.dumps(data("a"))) == data("a")
    assert data_differences(data("a"), data("b")) == []


@pytest.mark.parametrize(
    ("classes", "says"),
    [
        (CLASSES[::-1], ["class 'a' was label 0 (id 3) and is label 1 (id 3)", "class 'b' was label 1 (id 8)"]),
        ([Category(3, "b"), Category(8, "a")], ["class 'a' was label 0 (id 3) and is label 1 (id 8)"]),
        ([Category(3, "a"), Category(9, "b")], ["class 'b' had id 8 and has id 9"]),
        (
            [Category(3, "a"), Category(8, "c")],
            ["class 'b' (label 1) is no longer there", "class 'c' (label 1) is new"],
        ),
        ([*CLASSES, Category(9, "c")], ["class 'c' (label 2) is new"]),
        ([Category(3, "a"), Category(8, "a")], ["class 'b' (label 1) is no longer there"]),
    ],
    ids=["order", "names swapped", "id", "name", "one more", "twice the same name"],
)
def test_which_class_moved_is_named(data, classes, says):
    found = data_differences(data("a"), data("b", classes=classes))
    assert all(any(line.startswith(each) for line in found) for each in says), found


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r._replace(image=r.image + b"!"),
        lambda r: r._replace(boxes=r.boxes + 1e-9),
        lambda r: r._replace(labels=1 - r.labels),
        lambda r: r._replace(file_name=r.file_name + "x"),
        lambda r: r._replace(image_id=r.image_id + 1),
        lambda r: r._replace(area=r.area + 1),
        lambda r: r._replace(width=r.width + 1),
    ],
    ids=["image", "boxes", "labels", "name", "id", "area", "size"],
)
def test_another_content_of_one_split_is_named(data, change):
    (line,) = data_differences(data("a"), data("b", change))
    assert "split 'train' has as many images and boxes, but another content" in line


def test_other_numbers_are_named(data):
    (line,) = data_differences(data("a"), data("b", train=7))
    assert "split 'train' had 8 images and has 7" in line


def test_other_cuts_between_row_groups_are_another_order(data, monkeypatch):
    before = data("a")
    monkeypatch.setattr("mgdet.data.writer.ROW_GROUP_SIZE", 4)
    assert "another content" in data_differences(before, data("b"))[0]


def test_what_only_one_side_knows_is_not_compared(data):
    full = data("a")
    old = copy.deepcopy(full)
    for split in old["splits"].values():
        split["content"] = None
    assert data_differences(old, data("b", lambda r: r._replace(image=b"other"))) == []
    assert data_differences({}, full) == []
    assert data_differences({"classes": full["classes"]}, full) == []
    assert data_differences(old, data("c", train=7)) != []


def test_checksums_that_are_no_longer_there_are_a_difference(data):
    """Prepared again by a version of mgdet that made none: as many images and boxes may be other ones."""
    full = data("a")
    old = copy.deepcopy(full)
    old["splits"]["val"]["content"] = None
    assert data_differences(full, old) == [
        "split 'val' had checksums and has none now: an earlier version of mgdet has prepared it again"
    ]


def test_a_line_of_text(data):
    text = describe_data(data("a"))
    assert text.startswith(short(data("a")))
    assert text.endswith("2 classes (a, b); train 8 images, 7 boxes, val 4 images, 3 boxes")


# --- runs


def swap_classes(experiment):
    """Prepare the data set of the experiment again, with its classes in the opposite order."""
    uri = Path(experiment.data.uri)
    manifest = read_manifest(str(uri))
    content = manifest.model_dump(mode="json")
    content["categories"].reverse()
    (uri / "dataset.json").write_bytes(seal(content))


def begun(tmp_path, **changes):
    """An experiment that was trained to its end, on data that lie there and are not drawn anew."""
    generate_shapes(str(tmp_path / "shapes"), ShapesConfig(train=6, val=3, size=64))
    return small_experiment(tmp_path, data__generate=None, train__epochs=1, **changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    experiment = begun(tmp_path_factory.mktemp("finished"))
    train_in_process(experiment)
    return experiment


def again(finished, tmp_path, **changes):
    """A copy of the finished run's storage, over a copy of its data, as an experiment."""
    root = Path(finished.storage).parent
    shutil.copytree(root, tmp_path / "copy")
    e = small_experiment(tmp_path / "copy", data__generate=None, train__epochs=1, **changes)
    record = Path(e.run_uri) / "run.json"
    content = unseal(record.read_bytes())
    content["learned"]["data.uri"] = e.data.uri
    record.write_bytes(seal(content))
    return e


@pytest.mark.slow
def test_a_finished_run_is_not_already_finished_on_other_data(finished, tmp_path):
    e = again(finished, tmp_path)
    assert train_in_process(e)[0].already_finished
    swap_classes(e)
    with pytest.raises(ConfigError, match=r"was trained on other data .*\n.*class 'disk' was label 0.* is label 5"):
        train_in_process(e)


@pytest.mark.slow
def test_a_run_that_was_stopped_does_not_go_on_with_other_classes(tmp_path, monkeypatch):
    """The class head would be trained half on one and half on the other order, and AP be computed under new names."""
    e = begun(tmp_path).model_copy(update={"name": "stopped"})
    e = e.model_copy(update={"train": e.train.model_copy(update={"epochs": 2})})
    train_epoch = Worker._train_epoch

    def stopped(self, epoch):
        if epoch == 1:
            raise KeyboardInterrupt
        train_epoch(self, epoch)

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "_train_epoch", stopped)
        with pytest.raises(KeyboardInterrupt):
            train_in_process(e)
    before = [i.step for i in CheckpointStore(e.run_uri).committed()]
    swap_classes(e)
    with pytest.raises(ConfigError, match="class 'disk' was label 0"):
        train_in_process(e)
    assert [i.step for i in CheckpointStore(e.run_uri).committed()] == before == [3]


@pytest.mark.slow
def test_a_project_that_was_moved_goes_on(finished, tmp_path):
    """With its data, which lie elsewhere now: their content or their relative place decides, and all other keys."""
    place = tmp_path / "moved"
    shutil.copytree(Path(finished.data.uri).parent, place)
    moved = small_experiment(place, data__generate=None, train__epochs=1)
    assert moved.data.uri != finished.data.uri
    data = training_data(moved.data)[1]
    assert open_run(moved) is not None, "they lie where they lay, seen from the run"
    away = small_experiment(place, data__generate=None, train__epochs=1, data__uri=str(tmp_path / "away"))
    with pytest.raises(ConfigError, match=r"data\.uri: "):
        open_run(away)  # nothing shows that the data are the same
    assert open_run(away, data) is not None
    assert open_run(moved, data) is not None
    with pytest.raises(ConfigError, match=r"another configuration:\n  seed: 0 there, 1 asked for\nThe same storage"):
        open_run(small_experiment(place, data__generate=None, train__epochs=1, seed=1), data)
    other = copy.deepcopy(data)
    other["splits"]["val"]["content"] = "0" * 64
    with pytest.raises(ConfigError, match="was trained on other data"):
        open_run(moved, other)
    with pytest.raises(ConfigError, match=r"data\.uri: "):
        open_run(away, other)
    assert train_in_process(moved)[0].already_finished


def test_a_split_that_was_prepared_anew(finished, tmp_path):
    e = again(finished, tmp_path)
    generate_shapes(e.data.uri, ShapesConfig(train=6, val=3, size=64, seed=1), overwrite=True)
    with pytest.raises(ConfigError) as error:
        train_in_process(e)
    assert "split 'train'" in str(error.value)
    assert "split 'val'" in str(error.value)
    assert "name=small-2" in str(error.value)


def test_the_checkpoint_itself_knows_its_data(finished, tmp_path):
    """Also where the record of the run is lost, or was written before runs knew their data."""
    e = again(finished, tmp_path)
    swap_classes(e)
    resolved, _ = prepare(e, 1, 0)
    with pytest.raises(ConfigError, match=r"other data .*\n.*class 'disk' was label 0"):
        Worker(resolved, CPU, NullTracker())


def test_a_run_that_reached_no_checkpoint_may_change_its_data(tmp_path):
    e = begun(tmp_path)
    save_run(e, e, {}, of(e.data.uri))
    swap_classes(e)
    assert open_run(e, of(e.data.uri)) is None


# --- a run without its record


def test_a_lost_record_is_replaced_by_the_checkpoint(finished, tmp_path):
    e = again(finished, tmp_path)
    (Path(e.run_uri) / "run.json").unlink()
    e = e.model_copy(update={"data": e.data.model_copy(update={"uri": finished.data.uri})})
    assert train_in_process(e)[0].already_finished
    assert (Path(e.run_uri) / "run.json").exists()


def test_a_lost_record_does_not_let_another_learning_rate_in(finished, tmp_path):
    other = again(finished, tmp_path, train__optimizer={"name": "sgd", "lr": 5e-2, "momentum": 0})
    (Path(other.run_uri) / "run.json").unlink()
    other = other.model_copy(update={"data": other.data.model_copy(update={"uri": finished.data.uri})})
    with pytest.raises(ConfigError, match=r"train\.optimizer\.lr: 0\.001 there, 0\.05 asked for"):
        train_in_process(other)


def test_checkpoints_that_say_nothing_are_not_trained_over(tmp_path):
    e = begun(tmp_path)
    CheckpointStore(e.run_uri).save({"model": {}}, step=3, epoch=1, metrics={})
    with pytest.raises(ConfigError, match=r"has checkpoints but no run\.json"):
        train_in_process(e)


# --- more epochs, or another learning rate


@pytest.mark.parametrize(
    "changes",
    [
        {"train__epochs": 9},
        {"train__optimizer": {"name": "sgd", "lr": 1e-4, "momentum": 0}},
        {"train__schedule": {"name": "constant"}},
    ],
    ids=["epochs", "learning rate", "schedule"],
)
def test_the_refusal_names_the_way(finished, changes):
    root = Path(finished.storage).parent
    other = small_experiment(root, data__generate=None, **{"train__epochs": 1, **changes})
    with pytest.raises(ConfigError, match=rf"name=small-2 model\.weights={finished.run_uri}$"):
        open_run(other)


def test_another_network_cannot_be_trained_on(finished):
    root = Path(finished.storage).parent
    other = small_experiment(root, data__generate=None, train__epochs=1, model__channels=16)
    with pytest.raises(ConfigError) as error:
        open_run(other)
    assert "model.weights=" not in str(error.value)


def test_a_run_directory_is_its_best_checkpoint(finished, tmp_path, caplog):
    caplog.set_level("INFO")
    root = Path(finished.storage).parent
    resolved, _ = prepare(small_experiment(root, data__generate=None, name="on", model__weights=finished.run_uri), 1, 0)
    worker = Worker(resolved, CPU, NullTracker())
    best = CheckpointStore(finished.run_uri).best() or CheckpointStore(finished.run_uri).complete()[-1]
    state = CheckpointStore(finished.run_uri).load(best)
    assert all(torch.equal(v, state["model"][k]) for k, v in worker.detector.state_dict().items())
    assert best.file in caplog.text


def test_weights_for_the_classes_in_another_order(finished, tmp_path, caplog):
    """The class head would give every class the score of another one."""
    caplog.set_level("INFO")
    e = again(finished, tmp_path)
    swap_classes(e)
    e = e.model_copy(update={"name": "on", "model": e.model.model_copy(update={"weights": finished.run_uri})})
    worker = Worker(prepare(e, 1, 0)[0], CPU, NullTracker())
    assert "class head re-initialised (classes in another order: label 0 is 'disk' there" in caplog.text
    state = CheckpointStore(finished.run_uri).load(CheckpointStore(finished.run_uri).complete()[-1])["model"]
    changed = [k for k, v in worker.detector.state_dict().items() if not torch.equal(v, state[k])]
    assert changed
    assert all("cls_logits" in k for k in changed)


# --- the position in a checkpoint


@pytest.mark.parametrize(
    "changes",
    [{"step": -1}, {"step": 1.0}, {"epoch": "1"}, {"micro_step": True}, {"done": [[1, 2]]}, {"done": 3}, {"x": 1}],
    ids=str,
)
def test_a_position_that_could_not_have_been_written(changes):
    good = {"epoch": 1, "micro_step": 0, "step": 3, "metrics": {"val/AP": math.nan}, "world": 1, "batch_size": 2}
    assert Position.read({**good, "done": [[2, 1, 3]]}).step == 3
    with pytest.raises(ValueError, match=next(iter(changes))):
        Position.read({**good, **changes})


# --- sweeps and captures


@pytest.mark.slow
def test_a_sweep_goes_on_with_the_data_that_it_was_begun_with(tmp_path):
    sweep = load_sweep(write(tmp_path, space={"data.train_split": {"choice": ["train", "val"]}}))
    cluster = ClusterConfig(workers=1, gpu=False, cpus_per_worker=1)
    before = tune._check_corners(sweep, cluster)
    ((place, found),) = before.items()
    assert place == str(tmp_path / "shapes")
    assert found["splits"].keys() == {"train", "val"}
    require_data_of_sweep("runs/s", before, tune._check_corners(sweep, cluster))
    require_data_of_sweep("runs/s", {}, before)
    require_data_of_sweep("runs/s", before, {"elsewhere": found})
    other = copy.deepcopy(found)
    other["splits"]["val"]["content"] = "0" * 64
    with pytest.raises(ConfigError, match="elsewhere: none of those that it began with"):
        require_data_of_sweep("runs/s", before, {"elsewhere": other})
    swap_classes(next(sweep.corners())[1])
    with pytest.raises(ConfigError, match=r"the sweep runs/s was begun with other data:\n .*shapes: class 'disk'"):
        require_data_of_sweep("runs/s", before, tune._check_corners(sweep, cluster))


def test_no_trial_of_a_sweep_begins_on_other_data(tmp_path):
    """Prepared again while the sweep is running: a trial that starts afterwards has no record of its own yet."""
    trial = next(load_sweep(write(tmp_path)).corners())[1].model_copy(update={"storage": str(tmp_path / "s")})
    require_data_of_trial(trial)  # there is no record of a sweep
    training_images(trial.data)
    found = {trial.data.uri: training_data(trial.data)[1]}
    write_record(locate(tmp_path / "s" / "sweep.json"), "definition", Record({}, {}, found))
    require_data_of_trial(trial)
    swap_classes(trial)
    with pytest.raises(ConfigError, match=r"was begun with other data:\n .*shapes: class 'disk'"):
        require_data_of_trial(trial)


def test_a_capture_knows_its_data(tmp_path, data):
    network = small_experiment(tmp_path).model.build(2)
    path = capture(str(tmp_path), rank=0, step=1, epoch=0.0, batches=[], network=network, config={}, data=data("a"))
    assert data_of(load_capture(path)) == data("a")
