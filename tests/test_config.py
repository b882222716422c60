"""The configuration: overrides, unions, and errors that say what to do."""

from pathlib import Path

import pytest

from mgdet.assign import MaxIoU, MutualGuidance
from mgdet.config import load, validate
from mgdet.data.order import micro_batch
from mgdet.errors import CheckpointError, ConfigError
from mgdet.runs.resolve import resolve

CONFIGS = Path(__file__).parents[1] / "configs"
MINIMAL = {"name": "x", "data": {"uri": "d"}}


def write(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.name)
def test_every_shipped_configuration_loads_and_survives_a_round_trip(path, tmp_path):
    experiment = load(path)
    assert load(write(tmp_path, experiment.to_yaml())) == experiment


def test_overrides_of_any_depth(tmp_path):
    path = write(tmp_path, "{name: x, data: {uri: d}}")
    e = load(path, ["assigner.sigma=3", "train.optimizer.lr=1e-3", "data.transform.resize.width=64", "seed=7",
                    "data.transform.resize.height=32", "data.transform.resize.name=fixed"])  # fmt: skip
    assert (e.assigner.sigma, e.train.optimizer.lr, e.seed) == (3.0, 1e-3, 7)
    assert e.data.transform.resize.width == 64


def test_another_variant_of_a_union_is_one_override_away(tmp_path):
    path = write(tmp_path, "{name: x, data: {uri: d}, assigner: {name: mutual_guidance, sigma: 2, positive_iou: 0.6}}")
    assert load(path).assigner == MutualGuidance(positive_iou=0.6)
    assert load(path, ["assigner.name=max_iou"]).assigner == MaxIoU(positive_iou=0.6)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{name: x, data: {uri: d}, assigner: {name: mutual_guidance, sigmaa: 2}}", "Did you mean assigner.sigma?"),
        ("{name: x, data: {uri: d}, trian: {}}", "Did you mean train?"),
        (
            "{name: x, data: {uri: d}, train: {optimizer: {name: sgd, betas: [0, 1]}}}",
            "unknown key train.optimizer.betas",
        ),
        ("{name: x, data: {uri: d}, assigner: {name: max_iuo}}", "allowed are max_iou, center_sampling, atss"),
        ("{name: x, data: {uri: d}, assigner: {sigma: 0.5}}", "assigner"),
        (
            "{name: x, data: {uri: d}, train: {epochs: 0}}",
            "train.epochs = 0: Input should be greater than or equal to 1",
        ),
        ("{name: x, data: {uri: d}, train: {epochs: many}}", "train.epochs = 'many'"),
        ("{name: x}", "data is missing"),
        ("{name: a/b, data: {uri: d}}", "name = 'a/b'"),
        ("{name: x, name: y, data: {uri: d}}", "'name' stands twice"),
        ("[1, 2]", "expected a mapping"),
        ("{a: [}", "not valid YAML"),
        ("{name: x, data: {uri: d}, train: {log_every: 0}}", "train.log_every = 0: Input should be greater than 0"),
        (
            "{name: x, data: {uri: d}, assigner: {name: max_iou, positive_iou: 0.3}}",
            "negative_iou (0.4) must not exceed positive_iou (0.3)",
        ),
    ],
)
def test_errors_say_where_and_what(tmp_path, text, said):
    with pytest.raises(ConfigError) as error:
        load(write(tmp_path, text))
    assert said in str(error.value), error.value


@pytest.mark.parametrize(
    ("override", "said"),
    [("epochs", "key=value"), ("name.x=1", "name is a value"), ("a=[", "not valid YAML")],
)
def test_bad_overrides(tmp_path, override, said):
    with pytest.raises(ConfigError, match=said):
        load(write(tmp_path, "{name: x, data: {uri: d}}"), [override])


def test_missing_file_lists_what_there_is():
    with pytest.raises(ConfigError, match="cannot be read"):
        load("configs/nope.yaml")


def test_yaml_cannot_run_code(tmp_path):
    with pytest.raises(ConfigError, match="not valid YAML"):
        load(write(tmp_path, f"name: !!python/object/apply:os.system ['touch {tmp_path}/ran']"))
    assert not (tmp_path / "ran").exists()


def test_auto_becomes_a_number_with_a_reason():
    e, reasons = resolve(validate(MINIMAL, "t"), num_images=1000, cpus=32, gpus=4)
    assert (e.cluster.workers, e.cluster.gpu, e.cluster.cpus_per_worker) == (4, True, 8.0)
    assert "auto" not in e.to_yaml().replace("uri: auto", "")
    assert any("cluster.workers = 4 (one per GPU)" in r for r in reasons)


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"train": {"sync_bn": True}}, "GPUs only"), ({"cluster": {"gpu": True}}, "there is no GPU")],
    ids=["sync_bn on CPUs", "GPU asked for where there is none"],
)
def test_what_needs_a_gpu_is_refused_without_one(changes, said):
    with pytest.raises(ConfigError, match=said):
        resolve(validate({**MINIMAL, **changes}, "t"), num_images=100, cpus=4, gpus=0)


def test_weights_that_are_not_there_are_refused_before_anything_starts(tmp_path):
    """As a sweep would find it in every trial."""
    weights = tmp_path / "step-00000750.pt"
    experiment = validate({**MINIMAL, "model": {"weights": str(weights)}}, "t")
    with pytest.raises(CheckpointError, match=r"step-00000750\.pt': not a file, and not one of none, imagenet"):
        resolve(experiment, num_images=1000, cpus=4, gpus=0)
    weights.touch()
    resolve(experiment, num_images=1000, cpus=4, gpus=0)


@pytest.mark.parametrize(
    ("cpus", "gpus", "workers", "each"),
    [(2, 0, 1, 1), (3, 0, 2, 1), (1, 0, 1, 1), (8, 0, 2, 2), (32, 5, 4, 6), (8, 1, 1, 4)],
)
def test_workers_leave_room_for_an_evaluation_aside(cpus, gpus, workers, each):
    aside = validate({**MINIMAL, "evaluation": {"where": "aside"}}, "t")
    cluster = resolve(aside, num_images=1000, cpus=cpus, gpus=gpus)[0].cluster
    assert (cluster.workers, cluster.cpus_per_worker) == (workers, each)


def test_elastic_workers_leave_no_room_for_an_evaluation_aside():
    aside = validate({**MINIMAL, "evaluation": {"where": "aside"}, "cluster": {"workers": [1, 2]}}, "t")
    with pytest.raises(ConfigError, match="elastic workers would take the room of the process that evaluates"):
        resolve(aside, num_images=1000, cpus=8, gpus=0)


def test_batch_that_does_not_split():
    with pytest.raises(ConfigError, match="nearest: 15"):
        micro_batch(16, workers=5, accumulate=1)
    assert micro_batch(16, 2, 4) == 2


# --- files that start from another one


def test_a_file_holds_only_what_differs_from_its_base(tmp_path):
    (tmp_path / "parts").mkdir()
    base = "{name: x, seed: 3, data: {uri: d}, assigner: {name: mutual_guidance, sigma: 3, positive_iou: 0.6}}"
    (tmp_path / "parts/base.yaml").write_text(base)
    (tmp_path / "middle.yaml").write_text("{base: parts/base.yaml, train: {epochs: 7}}")
    path = write(tmp_path, "{base: middle.yaml, name: y, assigner: {name: max_iou, negative_iou: 0.3}}")
    e = load(path, ["train.batch_size=8"])
    assert (e.name, e.seed, e.data.uri, e.train.epochs, e.train.batch_size) == ("y", 3, "d", 7, 8)
    assert e.assigner == MaxIoU(positive_iou=0.6, negative_iou=0.3)
    assert load(write(tmp_path, e.to_yaml())) == e, "what is kept needs no base"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{base: nowhere.yaml, name: y}", "nowhere.yaml: cannot be read"),
        ("{base: nowhere.yaml, name: y}", r"c.yaml: base = 'nowhere.yaml': "),
        ("{base: ., name: y}", r"c.yaml: base = '\.': .*cannot be read"),
        ('{base: "a\\nb", name: y}', r"a\\nb: cannot be read"),
        ("{base: [a, b], name: y}", "expected the name of a YAML file"),
        ("{base: c.yaml, name: y}", "its base leads back to itself"),
        ("{base: b.yaml, name: {x: 1}}", "name is a value, it has no keys below it"),
    ],
)
def test_a_base_that_cannot_be_one(tmp_path, text, said):
    (tmp_path / "b.yaml").write_text("{name: x, data: {uri: d}}")
    with pytest.raises(ConfigError, match=said):
        load(write(tmp_path, text))
