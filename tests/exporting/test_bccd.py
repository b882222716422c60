"""The exported detectors give the checkpoint's detections in every validation image of BCCD."""

from pathlib import Path

import pytest
import torch

from mgdet import prepare
from mgdet.exporting.export import export_detector, on_cpu
from mgdet.exporting.formats import FORMATS
from mgdet.exporting.verify import verify
from mgdet.inference.load import load_detector
from mgdet.runs.launch import train_in_process
from tests.small import small_experiment
from tests.trained_runs import MODELS

BCCD = Path(__file__).parents[3] / "shared/data/bccd"
FIXED = {"name": "fixed", "height": 224, "width": 288}
KEPT = {"name": "longest_edge", "height": 224, "width": 288}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    if not BCCD.exists():
        pytest.skip("needs BCCD")
    out = tmp_path_factory.mktemp("bccd") / "data"
    names = {"train": "train", "val": "val"}
    splits = {split: (BCCD / f"annotations/{name}.json", BCCD / "images") for split, name in names.items()}
    prepare("coco", out, splits=splits)
    return out


@pytest.mark.exhaustive
@pytest.mark.parametrize("resize", [FIXED, KEPT], ids=["fixed", "kept"])
@pytest.mark.parametrize("name", MODELS)
def test_all_validation_images(name, resize, data, tmp_path):
    settings = {**MODELS[name], "name": name, "train__epochs": 3, "train__batch_size": 8}
    settings["train__optimizer"] = {"name": "adamw", "lr": 1e-3}  # with SGD no score reaches the threshold so soon
    settings |= {"data": {"uri": str(data), "transform": {"resize": resize}}}
    settings.pop("data__transform__resize", None)
    experiment = small_experiment(tmp_path, **settings, model__postprocess={"score_threshold": 0.02})
    try:
        train_in_process(experiment)
    finally:
        torch.use_deterministic_algorithms(False)
    trained = load_detector(experiment.run_uri, device=torch.device("cpu"))
    for format in ("onnx", "torchscript"):
        written = export_detector(trained, format, str(tmp_path / format))
        content = (tmp_path / format).read_bytes()
        found = verify(FORMATS[format].open(content), on_cpu(trained), trained, written.shape, images=10_000)
        assert found.images == 87
        assert found.detections > 87
        assert found.undecided <= 0.005 * found.detections
        assert found.box_error <= 1e-3
        assert found.score_error <= 1e-5
