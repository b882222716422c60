"""`mgdet export` and `mgdet.export`, from a training to detections without mgdet."""

import os

import numpy as np
import pytest
from PIL import Image

import mgdet
from mgdet.cli.main import main
from mgdet.exporting.runtime import OnnxDetector
from mgdet.models.postprocess import PostProcess
from tests.exporting.networks import require_same
from tests.trained_runs import MODELS, train


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_an_exported_run_gives_its_detections(name, tmp_path, monkeypatch, capsys):
    run = train(tmp_path, name)[0].run_uri
    monkeypatch.chdir(tmp_path)
    assert main(["export", run, "model.postprocess.max_detections=7"]) == 0
    said = capsys.readouterr().out
    assert f"{name}.onnx" in said
    assert "3 images of val of" in said
    rng = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(rng.integers(0, 256, (50 + number, 70, 3), dtype=np.uint8)).save(f"{number}.png")
    names = sorted(file for file in os.listdir() if file.endswith(".png"))
    exported = OnnxDetector(f"{name}.onnx", threads=1).predict(names, score=0.01)
    detector = mgdet.load(run, {"model.postprocess.max_detections": 7})
    settings = PostProcess(**detector.config["model"]["postprocess"])
    for found, expected in zip(exported, detector.predict(names, score=0.01), strict=True):
        assert 0 < len(expected) <= 7
        require_same(found, expected, settings, 0.01)
    script = mgdet.export(run, "x.torchscript", "torchscript", batch=2)
    assert script.verification["images"] == 3
    assert script.verification["box_error"] <= 1e-3


def test_mistakes_end_the_command_with_status_2(tmp_path, capsys):
    assert main(["export", str(tmp_path / "nothing")]) == 2
    assert "no such file or directory" in capsys.readouterr().err
    for arguments in (["--size", "64"], ["--size", "64x64", "--dynamic"], ["--format", "tflite"]):
        with pytest.raises(SystemExit) as ended:
            main(["export", "runs/x", *arguments])
        assert ended.value.code == 2
    assert "invalid choice: 'tflite'" in capsys.readouterr().err
