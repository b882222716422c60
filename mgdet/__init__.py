"""mgdet: dense object detectors with mutual assignment, trained on a Ray cluster.

    import mgdet

    result = mgdet.train("quickstart", {"train.epochs": 4, "cluster.workers": 0})
    found = mgdet.load(result.run).predict("photo.jpg")
    found.boxes, found.scores, found.names

The names below are the public interface. Importing them costs nothing: torch and the rest come with their first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = [
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
    "__version__",
    "compare",
    "doctor",
    "export",
    "load",
    "prepare",
    "train",
    "tune",
    "visualize",
]

if TYPE_CHECKING:
    from mgdet.api import compare, doctor, export, load, prepare, train, tune, visualize
    from mgdet.diagnosis.base import Finding
    from mgdet.errors import MgdetError
    from mgdet.inference.evaluate import Evaluation
    from mgdet.inference.prediction import Prediction
    from mgdet.results import (
        Comparison,
        Diagnosis,
        Export,
        PreparedData,
        TrainedDetector,
        TrainingResult,
        TuningResult,
        Visualization,
    )
else:

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module 'mgdet' has no attribute {name!r}")
        module = "mgdet.errors" if name == "MgdetError" else "mgdet.results" if name[0].isupper() else "mgdet.api"
        value = getattr(import_module(module), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
