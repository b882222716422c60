"""A run on disk: found again, refused to another experiment, and never changed by asking."""

import json
from pathlib import Path

import pytest

import mgdet
from mgdet.errors import ConfigError, DataError
from mgdet.runs.launch import prepare, training_images
from mgdet.runs.record import Record, log_directory, open_run, save_run, set_old_journal_aside, summarise
from mgdet.training.checkpoint import CheckpointStore
from tests.small import small_experiment


def snapshot(directory: Path):
    """Every file below, with content and time of change."""
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(directory.rglob("*")) if p.is_file()}


def save(experiment, run_id, resolved=None):
    """A run that has reached its first checkpoint."""
    save_run(experiment, resolved or experiment, {"mlflow": run_id} if run_id else {})
    CheckpointStore(experiment.run_uri).save({"model": {}}, step=0, epoch=0, metrics={})


def run_directory(experiment) -> Path:
    return Path(experiment.run_uri)


# --- open_run


def test_nothing_there(tmp_path):
    experiment = small_experiment(tmp_path)
    assert open_run(experiment) is None
    assert list(tmp_path.iterdir()) == [], "asking makes nothing"


def test_a_record_that_names_one_run_of_mlflow_is_read(tmp_path):
    """As versions before trackers could be chosen wrote it."""
    experiment = small_experiment(tmp_path)
    save(experiment, "id")
    path = Path(experiment.run_uri) / "run.json"
    content = {"learned": json.loads(path.read_text())["learned"]}
    path.write_text(json.dumps(content | {"mlflow_run_id": "old"}))
    assert open_run(experiment).run_ids == {"mlflow": "old"}
    path.write_text(json.dumps(content | {"mlflow_run_id": None}))
    assert open_run(experiment).run_ids == {}


def test_the_same_experiment_finds_its_run(tmp_path):
    experiment = small_experiment(tmp_path)
    save(experiment, "an-mlflow-id")
    found = open_run(experiment)
    identity = json.loads(json.dumps(experiment.identity()))
    assert found == Record(identity, {"mlflow": "an-mlflow-id"}, {}, found.made_by, experiment.run_uri)
    assert found.made_by["mgdet"] == mgdet.__version__
    assert open_run(experiment.model_copy(update={"name": "other"})) is None
    assert (run_directory(experiment) / "config.yaml").read_text() == experiment.to_yaml()


def test_a_run_is_known_by_what_was_asked_for(tmp_path):
    """On a machine where `auto` comes out otherwise it is still the same run; what came out is written beside."""
    asked = small_experiment(tmp_path)
    assert "warmup_steps: auto" in asked.to_yaml()
    schedule = asked.train.schedule.model_copy(update={"warmup_steps": 3})
    resolved = asked.model_copy(update={"train": asked.train.model_copy(update={"schedule": schedule})})
    save(asked, "id", resolved)
    assert open_run(asked).run_ids == {"mlflow": "id"}
    assert "warmup_steps: 3" in (run_directory(asked) / "config.yaml").read_text()
    with pytest.raises(ConfigError, match="warmup_steps: 'auto' there, 3 asked for"):
        open_run(resolved)


def test_one_split_for_training_and_evaluation_is_told(tmp_path, caplog):
    e = small_experiment(tmp_path)
    prepare(e, 1, 0)
    assert "are judged by the images" not in caplog.text
    prepare(e.model_copy(update={"data": e.data.model_copy(update={"val_split": "train"})}), 1, 0)
    assert "data.train_split and data.val_split are both train: val/AP and the best" in caplog.text


def test_a_run_without_mlflow(tmp_path):
    experiment = small_experiment(tmp_path)
    save(experiment, None)
    assert open_run(experiment).run_ids == {}


def test_another_experiment_is_refused_with_every_difference(tmp_path):
    save(small_experiment(tmp_path), "id")
    before = snapshot(tmp_path)
    other = small_experiment(tmp_path, assigner__sigma=3.5, train__epochs=7, train__clip_norm=10.0)
    with pytest.raises(ConfigError) as error:
        open_run(other)
    lines = str(error.value).splitlines()
    assert lines[1:4] == [
        "  assigner.sigma: 2.0 there, 3.5 asked for",
        "  train.clip_norm: None there, 10.0 asked for",
        "  train.epochs: 2 there, 7 asked for",
    ]
    assert other.run_uri in lines[0]
    assert "name=small-2" in lines[4]
    assert snapshot(tmp_path) == before


def test_a_run_that_reached_no_checkpoint_gives_way(tmp_path):
    """Its first start failed, say for weights that were not there: the mended command must not be refused."""
    save_run(small_experiment(tmp_path), small_experiment(tmp_path), {"mlflow": "id"})
    assert open_run(small_experiment(tmp_path, assigner__sigma=3.5)) is None
    assert open_run(small_experiment(tmp_path)).run_ids == {"mlflow": "id"}


def test_the_journal_of_a_run_that_gave_way_is_kept_apart(tmp_path):
    experiment = small_experiment(tmp_path)
    set_old_journal_aside(experiment)  # nothing there: nothing to do
    save_run(experiment, experiment, {})
    (run_directory(experiment) / "metrics.jsonl").write_text("old")
    set_old_journal_aside(experiment)
    kept = [p for p in run_directory(experiment).iterdir() if p.suffix == ".jsonl"]
    assert [p.read_text() for p in kept] == ["old"]
    assert kept[0].name != "metrics.jsonl"


def test_a_key_that_only_one_of_them_has(tmp_path):
    save(small_experiment(tmp_path), None)
    with pytest.raises(ConfigError) as error:
        open_run(small_experiment(tmp_path, assigner={"name": "max_iou"}))
    assert "assigner.name: 'mutual_guidance' there, 'max_iou' asked for" in str(error.value)
    assert "assigner.sigma: 2.0 there, None asked for" in str(error.value)


def test_many_differences_are_counted(tmp_path):
    save(small_experiment(tmp_path), None)
    transform = {"resize": {"name": "fixed", "height": 96, "width": 96}, "hflip": 0.25, "vflip": 0.25}
    changes = {f"data__generate__{k}": v for k, v in {"train": 7, "val": 4, "seed": 1, "max_objects": 3}.items()}
    anchors = {"sizes": [9, 17, 33, 65, 129], "scales": 2, "ratios": [1.0]}
    other = small_experiment(tmp_path, seed=9, data__transform=transform, model__anchors=anchors, **changes)
    with pytest.raises(ConfigError) as error:
        open_run(other)
    assert str(error.value).count(" asked for") == 12
    assert "and 0 more" not in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"cluster": {"workers": 2, "max_failures": 9}},
        {"tracking": {"enabled": False, "experiment": "another"}},
        {"data__loader": {"workers": 3}},
        {"evaluation__backend": "pycocotools"},
        {"train__evaluate_every": 2, "train__checkpoint_every_steps": 7, "train__keep_best": 3, "train__log_every": 1},
    ],
    ids=["cluster", "tracking", "loader", "evaluation", "how often"],
)
def test_what_does_not_change_the_result_may_change(tmp_path, changes):
    save(small_experiment(tmp_path), "id")
    changed = small_experiment(tmp_path, **changes)
    assert changed != small_experiment(tmp_path)
    assert open_run(changed).run_ids == {"mlflow": "id"}


def test_a_run_may_be_moved(tmp_path):
    """The storage is where it lies, not what it is."""
    experiment = small_experiment(tmp_path)
    save(experiment, "id")
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    assert open_run(experiment) is None
    assert open_run(experiment.model_copy(update={"storage": str(tmp_path / "elsewhere")})).run_ids == {"mlflow": "id"}


@pytest.mark.parametrize(
    "content",
    [b"", b'{"learned": {"seed"', b"\xff\xfe", b"{}", b"[]", b"null", b'{"learned": null}'],
    ids=["empty", "cut off", "not text", "no record", "a list", "null", "nothing learned"],
)
def test_a_damaged_record(tmp_path, content):
    experiment = small_experiment(tmp_path)
    save(experiment, "id")
    (run_directory(experiment) / "run.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"run\.json is damaged .*choose another name="):
        open_run(experiment)
    assert (run_directory(experiment) / "run.json").read_bytes() == content


def test_what_cannot_be_read_is_not_taken_for_nothing(tmp_path):
    """Else a second run would be started over the first one."""
    (tmp_path / "runs").write_text("a file where the runs should be")
    with pytest.raises((ConfigError, OSError)):
        open_run(small_experiment(tmp_path))


@pytest.mark.parametrize("key", ["train_split", "val_split"])
def test_a_split_that_the_data_set_lacks(tmp_path, key):
    data = small_experiment(tmp_path).data
    with pytest.raises(DataError, match=r"no split 'other'\. It has: train, val"):
        training_images(data.model_copy(update={key: "other"}))


# --- summarise


def checkpoint(experiment, step, epoch, **metrics):
    store = CheckpointStore(experiment.run_uri, keep_best=10)
    named = {k.replace("_", "/"): v for k, v in metrics.items()}
    return str(store.path(store.save({"model": {}}, step=step, epoch=epoch, metrics=named)))


def test_no_checkpoint_no_summary(tmp_path):
    experiment = small_experiment(tmp_path)
    assert summarise(experiment) is None
    save_run(experiment, experiment, {})
    assert summarise(experiment) is None


def test_the_best_by_ap_is_reported(tmp_path):
    experiment = small_experiment(tmp_path, train__epochs=3)
    checkpoint(experiment, 3, 1, val_AP=0.2, val_AP50=0.9)
    best = checkpoint(experiment, 6, 2, val_AP=0.4, val_AP50=0.5)
    checkpoint(experiment, 9, 3, val_AP=0.3, val_AP50=0.8)
    summary = summarise(experiment)
    assert (summary.checkpoint, summary.epoch) == (best, 2)
    assert summary.metrics == {"val/AP": 0.4, "val/AP50": 0.5}
    assert Path(summary.checkpoint).is_file()
    assert summary.already_finished


def test_without_any_score_it_is_the_newest(tmp_path):
    experiment = small_experiment(tmp_path)
    checkpoint(experiment, 2, 0)
    newest = checkpoint(experiment, 4, 1)
    summary = summarise(experiment)
    assert (summary.checkpoint, summary.epoch, summary.metrics) == (newest, 1, {})


@pytest.mark.parametrize(("epochs_done", "finished"), [(0, False), (1, False), (2, True)])
def test_finished_is_when_the_last_epoch_is_saved(tmp_path, epochs_done, finished):
    """The best checkpoint may be an earlier one; the run is finished all the same."""
    experiment = small_experiment(tmp_path, train__epochs=2)
    checkpoint(experiment, 1, 0, val_AP=0.9)
    checkpoint(experiment, 5, epochs_done, val_AP=0.1)
    summary = summarise(experiment)
    assert summary.metrics == {"val/AP": 0.9}
    assert summary.already_finished is finished


# --- where the log is kept


def test_log_directory(tmp_path, monkeypatch):
    experiment = small_experiment(tmp_path)
    assert log_directory(experiment) == tmp_path / "runs" / "small"
    as_uri = experiment.model_copy(update={"storage": f"file://{tmp_path}/runs"})
    assert log_directory(as_uri) == tmp_path / "runs" / "small"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    remote = experiment.model_copy(update={"storage": "s3://bucket/runs"})
    cache = tmp_path / "home" / ".cache" / "mgdet"
    assert log_directory(remote).parent == cache
    assert log_directory(remote).name.startswith("small-")


def test_runs_of_one_name_at_two_places_have_two_logs(tmp_path, monkeypatch):
    """Else the metrics of one are sent as those of the other."""
    monkeypatch.setenv("HOME", str(tmp_path))
    e = small_experiment(tmp_path)
    places = [
        "s3://one/runs",
        "s3://two/runs",
        "s3://one/runs/more",
        "s3://one/runs?endpoint_override=h:1",
        "gs://one/runs",
    ]
    logs = {log_directory(e.model_copy(update={"storage": place})) for place in places}
    assert len(logs) == len(places)
    assert log_directory(e.model_copy(update={"storage": places[0]})) in logs


def test_a_run_whose_last_checkpoint_was_cut_short_is_not_finished(tmp_path):
    experiment = small_experiment(tmp_path)
    store = CheckpointStore(experiment.run_uri)
    first = store.save({"model": {}}, step=3, epoch=1, metrics={"val/AP": 0.1})
    last = store.save({"model": {}}, step=6, epoch=experiment.train.epochs, metrics={"val/AP": 0.2})
    assert summarise(experiment).already_finished
    with open(store.path(last).path, "r+b") as file:
        file.truncate(last.size // 2)
    reached = summarise(experiment)
    assert not reached.already_finished
    assert reached.checkpoint == str(store.path(first))
    store.path(first).delete()
    assert summarise(experiment) is None
