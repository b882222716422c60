"""Exported files: that they give the checkpoint's detections, what they say about themselves, and what is refused."""

import json

import numpy as np
import pytest
import torch

from mgdet.errors import ConfigError, MgdetError
from mgdet.exporting import formats
from mgdet.exporting.describe import METADATA_FILE
from mgdet.exporting.export import export_detector
from mgdet.exporting.graph import DetectionGraph, suppress_with_torchvision
from mgdet.exporting.runtime import OnnxDetector
from mgdet.inference.predict import detect
from tests.exporting.networks import CLASSES, MODELS, untrained


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    return {name: untrained(tmp_path_factory.mktemp("networks"), name) for name in MODELS}


def pictures():
    rng = np.random.default_rng(2)
    return [
        rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for height, width in ((70, 50), (40, 90), (64, 64))
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"), [("retinanet", {}), pytest.param("fcos", {"opset": 20}, marks=pytest.mark.slow)]
)
def test_onnx_gives_the_detections_without_mgdet(name, options, networks, tmp_path):
    trained = networks[name]
    written = export_detector(trained, out=str(tmp_path / "x.onnx"), **options)
    assert written.verification.detections > 200
    assert written.verification.images == 16
    detector = OnnxDetector(tmp_path / "x.onnx", threads=1)
    assert [c["name"] for c in detector.classes] == list(CLASSES)
    assert [c["id"] for c in detector.classes] == [10, 11, 12, 13]
    assert detector.metadata == written.metadata
    assert detector.metadata["opset"] == str(options.get("opset", 18))
    fixed = [64, 64] if name == "retinanet" else None
    assert detector.rule["size"] == fixed
    for picture, found in zip(pictures(), detector.predict(pictures(), score=0.2), strict=True):
        expected = detect(trained, [torch.from_numpy(picture).permute(2, 0, 1)])
        wanted = expected.scores[0] >= 0.2
        np.testing.assert_allclose(found.scores, expected.scores[0, wanted], atol=1e-5)
        np.testing.assert_allclose(found.boxes, expected.boxes[0, wanted], atol=1e-3)
        assert np.array_equal(found.labels, expected.labels[0, wanted])


@pytest.mark.slow
def test_torchscript_and_safetensors(networks, tmp_path):
    trained = networks["retinanet"]
    script = export_detector(trained, "torchscript", str(tmp_path / "x.torchscript"), dynamic=True, batch=2)
    assert script.verification.detections > 200
    extra = {METADATA_FILE: ""}
    torch.jit.load(script.path, _extra_files=extra)
    assert json.loads(extra[METADATA_FILE]) == script.metadata
    weights = export_detector(trained, "safetensors", str(tmp_path / "x.safetensors"))
    assert weights.verification is None
    from safetensors import safe_open

    with safe_open(weights.path, "pt") as file:
        assert file.metadata() == weights.metadata
        assert set(file.keys()) == set(trained.detector.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), [("retinanet", {"batch": 1}), ("fcos", {"size": (96, 64)})])
def test_torch_export(name, options, networks, tmp_path):
    written = export_detector(networks[name], "torch_export", str(tmp_path / "x.pt2"), **options)
    assert written.verification.detections > 200


@pytest.mark.slow
def test_a_wrong_graph_is_refused_and_replaces_no_file(networks, tmp_path, monkeypatch):
    trained, file = networks["fcos"], tmp_path / "x"
    file.write_bytes(b"an older one")
    graph = DetectionGraph(trained.detector, suppress_with_torchvision, dynamic=True)
    error = [0.0]

    def call(*inputs):
        boxes, *others = graph(*inputs)
        return boxes + error[0], *others

    monkeypatch.setitem(formats.FORMATS, "x", formats.Format(".x", lambda *_: b"a new one", lambda _: call))
    assert export_detector(trained, "x", str(file)).verification.detections > 200
    assert file.read_bytes() == b"a new one"
    error[0] = 0.01
    monkeypatch.setitem(formats.FORMATS, "x", formats.Format(".x", lambda *_: b"a wrong one", lambda _: call))
    with pytest.raises(MgdetError, match=r"does not give .* differ by more than 0.001 px.*the nearest differs by 0.01"):
        export_detector(trained, "x", str(file))
    assert file.read_bytes() == b"a new one"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"format": "tflite"}, "allowed are onnx, torchscript, torch_export, safetensors"),
        ({"format": "torchscript", "opset": 18}, "torchscript has none"),
        ({"opset": 7}, "allowed are 18 to 20"),
        ({"size": (100, 64)}, "multiples of 32 .*such as 128 x 64"),
        ({"size": (64, 64)}, "up to 96 x 64"),
        ({"size": (96, 64), "dynamic": True}, "not both"),
        ({"batch": 0}, "at least 1"),
    ],
)
def test_bad_options_are_refused(options, said, networks, tmp_path):
    with pytest.raises(ConfigError, match=said):
        export_detector(networks["fcos"], out=str(tmp_path / "x"), **options)
    assert not (tmp_path / "x").exists()
