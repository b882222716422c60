"""What COCO's and VOC's average precision have in common: their input and their result."""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mgdet.errors import NonFiniteError
from mgdet.ground_truth import GroundTruth, require_lengths, require_range

Backend = Literal["faster", "hotcoco", "pycocotools"]
Protocol = Literal["coco", "voc07", "voc12"]

IOU_THRESHOLDS: NDArray[np.float64] = np.linspace(0.5, 0.95, 10)
RECALL_THRESHOLDS: NDArray[np.float64] = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True)
class DetectionArrays:
    """`D` detections of a whole split in flat arrays. Ties of the score are broken by their order, as COCO does."""

    image: NDArray[np.int64]  # [D] row of the image in `GroundTruth.image_ids`
    boxes: NDArray[np.floating[Any]]  # [D, 4] xyxy, pixels of the original image file
    scores: NDArray[np.floating[Any]]  # [D]
    labels: NDArray[np.int64]  # [D] contiguous class

    @classmethod
    def empty(cls) -> "DetectionArrays":
        """No detections at all."""
        ids = np.zeros(0, dtype=np.int64)
        return cls(ids, np.zeros((0, 4)), np.zeros(0), ids)


@dataclass(frozen=True)
class APResult:
    """COCO's twelve numbers, those per class, and the curves behind them.

    `None` is undefined: there is no such ground truth, or the protocol does not define the number. VOC's define neither
    those by size nor the recalls.
    """

    AP: float | None  # mean over IoU 0.50:0.05:0.95
    AP50: float | None
    AP75: float | None
    per_class: dict[str, float | None]
    class_boxes: dict[str, int]  # objects of each class, crowds not counted
    ap: NDArray[np.float64] = field(repr=False)  # [T=10, K] at `IOU_THRESHOLDS` of each class; NaN undefined
    precision: NDArray[np.float64] = field(repr=False)  # [T, R=101, K] at recalls of all sizes; -1 undefined
    n_images: int
    n_boxes: int  # crowds not counted
    detections: DetectionArrays = field(repr=False)  # what was judged
    protocol: Protocol = "coco"
    backend: Backend | None = None  # the library that computed COCO's numbers
    APs: float | None = None  # area < 32**2
    APm: float | None = None
    APl: float | None = None  # area > 96**2
    AR1: float | None = None  # recall with at most 1 detection an image and class
    AR10: float | None = None
    AR100: float | None = None
    ARs: float | None = None
    ARm: float | None = None
    ARl: float | None = None
    max_dets: int = 100  # of an image and class that count, where the protocol has such a limit; at least 100
    AR_max: float | None = None  # recall with at most `max_dets` detections an image and class

    @property
    def n_detections(self) -> int:
        """How many detections were judged."""
        return len(self.detections.scores)

    @property
    def per_class_at(self) -> dict[str, NDArray[np.float64]]:
        """AP at each of `IOU_THRESHOLDS` by class name, `[10]`; NaN where the class has no ground truth."""
        return {name: self.ap[:, k] for k, name in enumerate(self.per_class)}

    def metrics(self) -> dict[str, float]:
        """What is defined, under its tracking name: `val/AP`, ..., `val/AP/<class>`. Plain Python floats."""
        names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
        values: dict[str, float | None] = {f"val/{name}": getattr(self, name) for name in names}
        values[f"val/AR{self.max_dets}"] = self.AR_max
        values |= {f"val/AP/{name}": value for name, value in self.per_class.items()}
        return {name: value for name, value in values.items() if value is not None}


def defined_mean(values: NDArray[np.float64]) -> float | None:
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else None


def check_detections(gt: GroundTruth, det: DetectionArrays) -> None:
    require_lengths("DetectionArrays", len(det.image), boxes=det.boxes, scores=det.scores, labels=det.labels)
    require_range("DetectionArrays.image", det.image, len(gt.image_ids), "images")
    require_range("DetectionArrays.labels", det.labels, len(gt.categories), "categories")
    broken = ~(np.isfinite(det.boxes).all(axis=1) & np.isfinite(det.scores))
    if broken.any():
        first = gt.image_ids[det.image[np.flatnonzero(broken)[0]]]
        raise NonFiniteError(
            f"{int(broken.sum())} of {len(broken)} detections have a box or score that is NaN or infinite (first in "
            f"image id {first}); the weights have probably diverged: evaluate an earlier checkpoint"
        )
