"""`import mgdet`: what it offers, and that its results are those of the commands."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mgdet
from mgdet.inference.evaluate import evaluate_trained
from mgdet.inference.load import load_detector
from tests.small import small_experiment
from tests.trained_runs import call, import_job, train

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The directory of a small run."""
    directory = tmp_path_factory.mktemp("api")
    return Path(train(directory, "retinanet")[0].run_uri)


@pytest.fixture(scope="module")
def detector(run):
    return mgdet.load(run)


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    """Noise of 50 x 70 pixels."""
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


# --- the face


def test_importing_is_cheap_and_gives_exactly_the_public_names():
    code = (
        "import time, sys; start = time.process_time(); import mgdet; used = time.process_time() - start;"
        "assert used < 0.3, used; assert 'torch' not in sys.modules and 'pydantic' not in sys.modules;"
        "print(*(n for n in dir(mgdet) if n[0] != '_'), sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(mgdet.__all__) - {"__version__"} <= set(done.stdout.split())
    assert all(getattr(mgdet, name) is not None for name in mgdet.__all__)
    assert all(getattr(mgdet, name).__doc__ for name in mgdet.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        mgdet.nothing  # noqa: B018  # the access is what is tested
    assert (ROOT / "mgdet/py.typed").is_file()


def test_the_public_interface_is_frozen():
    """A name that goes, or a parameter that changes its name, breaks the programs of others."""
    import inspect

    parameters = {
        n: list(inspect.signature(getattr(mgdet, n)).parameters)
        for n in ("train", "tune", "prepare", "doctor", "compare", "load", "visualize", "export")
    }
    assert parameters == {
        "train": ["config", "overrides"],
        "tune": ["config", "overrides", "retry_failed"],
        "prepare": ["format", "out", "splits", "overwrite", "plugins", "options"],
        "doctor": ["data", "splits", "config", "checkpoint", "plugins", "options"],
        "compare": ["runs", "data", "split", "samples", "seed", "plugins"],
        "load": ["source", "overrides", "device", "plugins"],
        "visualize": [
            *("source", "out", "overrides", "images", "assigners", "checkpoints", "data", "split", "near"),
            *("overwrite", "plugins"),
        ],
        "export": [
            *("source", "out", "format", "overrides", "size", "dynamic", "batch", "opset", "verify", "plugins"),
        ],
    }
    assert list(inspect.signature(mgdet.TrainedDetector.predict).parameters) == [
        "self",
        "images",
        "score",
        "batch_size",
    ]
    assert list(inspect.signature(mgdet.TrainedDetector.evaluate).parameters) == ["self", "data", "split", "out"]
    assert list(inspect.signature(mgdet.TrainedDetector.export).parameters) == [
        *("self", "out", "format", "size", "dynamic", "batch", "opset", "verify"),
    ]
    assert set(mgdet.__all__) == {
        *(
            "Comparison",
            "Diagnosis",
            "Evaluation",
            "Export",
            "Finding",
            "MgdetError",
            "Prediction",
            "PreparedData",
            "TrainedDetector",
            "TrainingResult",
            "TuningResult",
            "Visualization",
        ),
        *("__version__", "compare", "doctor", "export", "load", "prepare", "train", "tune", "visualize"),
    }


# --- load, predict, evaluate


@pytest.mark.slow
def test_a_detector_says_what_it_is(detector, run):
    assert [c.name for c in detector.classes] == ["disk", "square", "triangle", "star", "ring", "cross"]
    assert Path(detector.checkpoint).parent == run / "checkpoints"
    assert detector.config["model"]["name"] == "retinanet"
    assert "6 classes" in repr(detector)
    assert mgdet.load(detector.checkpoint).checkpoint == detector.checkpoint
    stricter = mgdet.load(run, {"model.postprocess.max_detections": 3})
    assert stricter.config["model"]["postprocess"]["max_detections"] == 3


@pytest.mark.slow
def test_every_kind_of_image_gives_the_same_detections(detector, photo):
    picture = Image.open(photo)
    array = np.asarray(picture)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    images = [photo, str(photo), picture, array, array[:, ::-1][:, ::-1], tensor]
    found = [detector.predict(image, score=0.01) for image in images]
    assert len(found[0]) > 0
    for other in found[1:]:
        assert np.array_equal(found[0].boxes, other.boxes)
        assert np.array_equal(found[0].scores, other.scores)
        assert np.array_equal(found[0].labels, other.labels)
    several = detector.predict(images[:3], score=0.01, batch_size=2)
    assert [type(p) for p in several] == [mgdet.Prediction] * 3
    # an image's batch changes its last bits, and with them the order of boxes that score almost alike
    np.testing.assert_allclose(several[1].scores, found[0].scores, rtol=1e-3)
    assert several[1].scores[0] > several[1].scores[-1]
    assert detector.predict([]) == []


@pytest.mark.slow
def test_the_doctor_judges_labels_and_anchors_by_a_checkpoint(run, detector):
    diagnosis = mgdet.doctor(detector.config["data"]["uri"], checkpoint=run, workers=1)
    found = {finding.kind: finding for finding in diagnosis.findings}
    assert "idle_levels" in found  # nothing is as large as the anchors of P7
    assert not {"unusable", "unreadable", "changed"} & set(found)
    accused = [found[kind] for kind in ("overlooked", "swapped", "badly_placed") if kind in found]
    assert all(0.1 <= case.score <= 1 for finding in accused for case in finding.cases)
    with pytest.raises(mgdet.MgdetError, match="There cannot be 1000 decoding threads"):
        mgdet.doctor(detector.config["data"]["uri"], workers=1000)


def test_a_turned_picture_is_seen_upright(detector, photo, tmp_path):
    turned = Image.open(photo).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[274] = 6  # turn by 90 degrees clockwise to see it upright
    turned.save(tmp_path / "turned.png", exif=exif)
    for image in (tmp_path / "turned.png", Image.open(tmp_path / "turned.png")):
        assert detector.predict(image).size == (50, 70)


def test_values_of_a_prediction(detector, photo):
    found = detector.predict(photo, score=0.01)
    n = len(found)
    assert (found.boxes.shape, found.scores.shape, found.labels.shape) == ((n, 4), (n,), (n,))
    assert found.size == (50, 70)
    assert (np.diff(found.scores) <= 0).all()
    assert found.scores.min() >= np.float32(0.01)
    assert (found.boxes >= 0).all()
    assert (found.boxes[:, 2] <= 70).all()
    assert (found.boxes[:, 3] <= 50).all()
    assert found.names == [detector.classes[k].name for k in found.labels]


def test_coco_results_are_those_of_the_command(detector, run, photo, tmp_path):
    answer = call(import_job("predict"), run, photo, "--out", tmp_path / "out", "--score", "0.01")
    assert answer.status == 0, answer.err
    written = json.loads((tmp_path / "out/detections.json").read_text())
    assert written
    assert [{k: v for k, v in r.items() if k != "file_name"} for r in written] == detector.predict(
        photo, score=0.01
    ).to_coco(0)


def test_detections_of_supervision(detector, photo):
    supervision = pytest.importorskip("supervision", reason="in the development dependencies")
    found = detector.predict(photo, score=0.01)
    theirs = found.to_supervision()
    assert isinstance(theirs, supervision.Detections)
    assert len(theirs) == len(found)
    np.testing.assert_array_equal(theirs.xyxy, found.boxes.astype(np.float32))
    np.testing.assert_array_equal(theirs.class_id, found.labels)
    assert theirs["class_name"].tolist() == found.names
    best = theirs[theirs.confidence == theirs.confidence.max()]
    assert best["class_name"][0] == found.names[0]
    drawn = supervision.BoxAnnotator().annotate(np.zeros((50, 70, 3), np.uint8), theirs)
    assert drawn.any()
    nothing = detector.predict(photo, score=1.0).to_supervision()
    assert len(nothing) == 0


def test_without_supervision_it_says_what_to_install(detector, photo, monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(mgdet.MgdetError, match="pip install supervision"):
        detector.predict(photo).to_supervision()


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.zeros((8, 8, 3), np.float32), "array of shape [8, 8, 3] and type float32"),
        (np.zeros((3, 8, 8), np.uint8), "array of shape [3, 8, 8] and type uint8"),
        (np.zeros((8, 8), np.uint8), "array of shape [8, 8] and type uint8"),
        (np.zeros((8, 8, 4), np.uint8), "array of shape [8, 8, 4] and type uint8"),
        (np.zeros((0, 8, 3), np.uint8), "it has no pixels"),
        (torch.zeros(8, 8, 3, dtype=torch.uint8), "tensor of shape [8, 8, 3] and type uint8"),
        (torch.zeros(3, 8, 8), "tensor of shape [3, 8, 8] and type float32"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "tensor of shape [1, 3, 8, 8]"),
        (7, "an image is a int: expected a file's path"),
        ("nowhere.jpg", "nowhere.jpg: cannot be read"),
        (Image.new("F", (8, 8)), "the Pillow image cannot be read"),
    ],
)
def test_other_images_are_refused(detector, image, said):
    with pytest.raises(mgdet.MgdetError) as error:
        detector.predict([image])
    assert said in str(error.value)


@pytest.mark.parametrize("options", [{"score": 1.5}, {"batch_size": 0}])
def test_options_of_predict_that_mean_nothing(detector, photo, options):
    with pytest.raises(mgdet.MgdetError, match="allowed are 0 to 1, and at least 1"):
        detector.predict(photo, **options)


@pytest.mark.slow
def test_evaluation_is_that_of_the_command(detector, run):
    found = detector.evaluate()
    assert isinstance(found, mgdet.Evaluation)
    assert found == evaluate_trained(load_detector(str(run)))
    assert (found.images, found.split) == (3, "val")
    assert detector.evaluate(found.data, "train").images == 6


# --- prepare, train, tune


def test_prepare(tmp_path):
    made = mgdet.prepare("shapes", tmp_path / "shapes", train=3, val=2, size=64)
    assert (made.uri, dict(made.images)) == (str(tmp_path / "shapes"), {"train": 3, "val": 2})
    assert made.classes[0] == "disk"
    annotations = {"images": [{"id": 1, "file_name": "a.png", "width": 8, "height": 8}], "annotations": []}
    (tmp_path / "a.json").write_text(json.dumps({**annotations, "categories": [{"id": 5, "name": "cell"}]}))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    made = mgdet.prepare("coco", tmp_path / "mine", splits={"val": (tmp_path / "a.json", tmp_path)}, name="cells")
    assert (made.classes, dict(made.images)) == (("cell",), {"val": 1})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("pascal", "x"), "allowed are coco.* and shapes"),
        (("coco", "x"), "coco needs splits="),
    ],
)
def test_what_cannot_be_prepared(arguments, said):
    with pytest.raises(mgdet.MgdetError, match=said):
        mgdet.prepare(*arguments)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"format": "shapes", "trian": 3}, "Did you mean train"),
        ({"format": "coco", "splits": {"a": ("b", "c")}, "x": 1}, "no option 'x'"),
    ],
)
def test_options_of_prepare_that_there_are_not(tmp_path, options, said):
    with pytest.raises(mgdet.MgdetError, match=said):
        mgdet.prepare(out=tmp_path / "x", **options)
    assert not (tmp_path / "x").exists()


def test_train_and_load_what_it_reached(tmp_path):
    config = small_experiment(tmp_path).shown()
    try:
        result = mgdet.train(config, {"train.epochs": 1, "name": "mine"})
    finally:
        torch.use_deterministic_algorithms(False)
    assert result.run == str(tmp_path / "runs/mine")
    assert result.epoch == 1
    assert 0 <= result.metrics["val/AP"] <= 1
    assert mgdet.load(result.run).checkpoint == result.checkpoint
    with pytest.raises(mgdet.MgdetError, match="Did you mean train\\.epochs"):
        mgdet.train(config, {"train.epoch": 1})


def test_tune_gives_the_winner(tmp_path, monkeypatch):
    """The search itself is Ray's part; here it has ended."""
    from mgdet.cluster import tune
    from mgdet.sweep.trials import EpochMetrics, Trial

    asked = []

    def run_sweep(sweep, *, retry_failed):
        asked.append((sweep.trials, retry_failed))
        evaluations = [EpochMetrics(epoch=1, metrics={"val/AP": 0.25}, time=0.0)]
        winner = Trial(number=0, name="t", params={}, settings={"assigner.sigma": 2}, epochs=1, evaluations=evaluations)
        return tune.Outcome([winner], winner if sweep.trials == 4 else None, "winner.yaml", "table", None)

    monkeypatch.setattr(tune, "run_sweep", run_sweep)
    result = mgdet.tune("quick", {"trials": 4}, retry_failed=True)
    assert (dict(result.best), dict(result.metrics)) == ({"assigner.sigma": 2}, {"val/AP": 0.25})
    assert (result.config, result.table) == ("winner.yaml", "table")
    with pytest.raises(mgdet.MgdetError, match="no trial came to a value"):
        mgdet.tune("quick", ["trials=6"])
    assert asked == [(4, True), (6, False)]
