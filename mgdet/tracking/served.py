"""What MLflow runs for a model of mgdet: pictures in, detections out, without torch, Ray and mgdet.

MLflow copies this file into the model and runs it from there, beside the ONNX file and `mgdet.exporting.runtime`. So
nothing is pickled; no module of mgdet imports this one.
"""

import importlib.util
from typing import Any

import mlflow


class Detector(mlflow.pyfunc.PythonModel):  # type: ignore[misc]  # mlflow is not typed
    """`predict(images, params={"score": 0.3})`."""

    def load_context(self, context: Any) -> None:
        """Open the model's files."""
        spec = importlib.util.spec_from_file_location("mgdet_runtime", context.artifacts["runtime"])
        assert spec is not None, "the model has its runtime"
        assert spec.loader is not None, "which is a file of Python"
        runtime = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(runtime)
        self.detector = runtime.OnnxDetector(context.artifacts["onnx"])

    def predict(
        self, context: Any, model_input: list[bytes], params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """For each picture (the content of an image file; over HTTP in Base64) a dictionary of its `N` detections.

        `boxes` are `N` times (x1, y1, x2, y2) in pixels of the upright picture, `scores` are in [0, 1], `category_ids`
        are those of the data set and `names` the names of the classes; the best comes first.
        """
        found = self.detector.predict(model_input, (params or {}).get("score", 0.3))
        classes = self.detector.classes
        return [
            {
                "boxes": boxes.tolist(),
                "scores": scores.tolist(),
                "category_ids": [classes[i]["id"] for i in labels.tolist()],
                "names": [classes[i]["name"] for i in labels.tolist()],
            }
            for boxes, scores, labels in found
        ]


mlflow.models.set_model(Detector())
