"""The best checkpoint of a finished run as a model in its tracker; whatever fails here never costs the run."""

import io
import logging
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mgdet.config import Experiment
from mgdet.exporting import runtime
from mgdet.exporting.export import export_detector
from mgdet.exporting.verify import verification_images
from mgdet.inference.load import Trained, load_detector
from mgdet.text import first_line
from mgdet.tracking import Best, ModelFiles, RunHandle

logger = logging.getLogger(__name__)

TAG = "mgdet.model"
"""The tag of a run that says why its model is not there."""


def keep_model(experiment: Experiment, handle: RunHandle, best: Best) -> None:
    """Export the best checkpoint to ONNX, verify it, and give it to the tracker, unless the tracker has it already.

    A failure is a warning and a tag of the run; the next start of the run tries again.
    """
    tracking = experiment.tracking
    if tracking.has_model(handle, best):
        return
    try:
        with tempfile.TemporaryDirectory() as directory:
            trained = load_detector(best.checkpoint, device=torch.device("cpu"), plugins=experiment.plugins)
            export_detector(trained, "onnx", f"{directory}/model.onnx")
            files = ModelFiles(Path(directory) / "model.onnx", Path(runtime.__file__), _example(trained))
            tracking.keep_model(handle, best, files)
    except Exception as error:  # of an exporter, which may raise anything
        logger.warning(
            "the model of %s was not logged: %s. The run itself is complete; the same command tries again, and `mgdet "
            "export` writes the file alone.",
            experiment.run_uri,
            first_line(error),
        )
        tracking.tag(handle, {TAG: f"not logged: {first_line(error)}"})


def _example(trained: Trained) -> bytes:
    """A PNG of the first image by which the export was verified, as the network sees it."""
    image = verification_images(trained, 1)[0][0].data.image
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy())).save(out, "png")
    return out.getvalue()
