"""COCO average precision from flat arrays, by faster-coco-eval, hotcoco or pycocotools.

These libraries implement the protocol of https://cocodataset.org/#detection-eval and are fed the same boxes, so each
can check the others. hotcoco takes arrays, and needs a tenth of the time and memory of those that take a dictionary for
each box. This module owns what users keep stumbling over: annotation ids are renumbered from
1 (the matchers use id 0 for "unmatched", which silently costs AP), and so are images and classes in order of the
source's ids (faster-coco-eval holds ids as doubles, which merges neighbours beyond 2^53; the order decides ties), no
detections is an AP of 0 rather than an exception, and a value that is undefined is absent rather than -1.
"""

import contextlib
import io
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray

from mgdet.errors import ConfigError
from mgdet.evaluation.average_precision import (
    IOU_THRESHOLDS,
    RECALL_THRESHOLDS,
    APResult,
    Backend,
    DetectionArrays,
    check_detections,
    defined_mean,
)
from mgdet.evaluation.metric import Arrays, Metric, MetricInfo, Seen, joined
from mgdet.evaluation.voc import voc_ap
from mgdet.ground_truth import GroundTruth, Tiles
from mgdet.structures import unique_names
from mgdet.tiles import keep_of_tiles

_AREAS = ("all", "small", "medium", "large")  # the order of both libraries' `params.areaRng`
_HEADLINE_LIMITS = (1, 10, 100)
_SIZE_DECIMALS = 8


class CocoAP(Metric[APResult]):
    """Average precision and recall of the final detections, by the rules of `evaluation.protocol`."""

    name: ClassVar[str] = "coco"
    infos: ClassVar[tuple[MetricInfo, ...]] = (
        MetricInfo("val/AP", "max", "mean over IoU 0.50:0.05:0.95 and classes", headline=True, brief=True),
        MetricInfo("val/AP50", "max", "AP at IoU 0.50", headline=True, brief=True),
        MetricInfo("val/AP75", "max", "AP at IoU 0.75", headline=True, brief=True),
        MetricInfo("val/APs", "max", "AP of objects below 32 x 32 pixels", headline=True),
        MetricInfo("val/APm", "max", "AP of objects between 32 x 32 and 96 x 96 pixels", headline=True),
        MetricInfo("val/APl", "max", "AP of objects above 96 x 96 pixels", headline=True),
        MetricInfo("val/AR100", "max", "recall with at most 100 detections an image and class", headline=True),
        MetricInfo("val/AR<limit or size>", "max", "recall at another limit, or of a size"),
        MetricInfo("val/AP/<class>", "max", "AP of one class"),
    )

    def __init__(self, ground_truth: GroundTruth, config: Any) -> None:
        super().__init__(ground_truth, config)
        self._parts: list[Arrays] = []

    def update(self, seen: Seen) -> None:
        """See `Metric`."""
        final, positions = seen.detections, seen.batch.positions.cpu()
        row = positions[:, None].expand_as(final.labels)[final.valid]
        self._parts.append(
            {
                "image": row.numpy(),
                "boxes": final.boxes[final.valid].float().numpy(),
                "scores": final.scores[final.valid].float().numpy(),
                "labels": final.labels[final.valid].numpy(),
            }
        )

    def state(self) -> Arrays:
        """See `Metric`: the detections."""
        return joined(self._parts)

    def merge(self, states: Sequence[Arrays]) -> Self:
        """See `Metric`."""
        out = type(self)(self.ground_truth, self.config)
        out._parts = list(states)
        return out

    def compute(self) -> APResult:
        """See `Metric`."""
        own = self.state()
        found = DetectionArrays.empty()
        if own:
            order = np.argsort(own["image"], kind="stable")  # best score first within an image is kept
            found = DetectionArrays(*(own[key][order] for key in ("image", "boxes", "scores", "labels")))
        truth = self.ground_truth
        if truth.tiles is not None:
            found, truth = of_whole_pictures(found, truth.tiles, self.config.tile_nms_iou), truth.tiles.whole
        if self.config.protocol == "coco":
            return coco_ap(truth, found, self.config.backend, self.config.max_dets)
        return voc_ap(truth, found, self.config.protocol)


def of_whole_pictures(found: DetectionArrays, tiles: Tiles, nms_iou: float) -> DetectionArrays:
    """The detections in tiles as those of the whole pictures, with one suppression for each picture."""
    parts = [DetectionArrays.empty()]
    picture = tiles.picture[found.image]
    for row in np.unique(picture).tolist():
        of_it, own = np.flatnonzero(picture == row), np.flatnonzero(tiles.picture == row)
        boxes = found.boxes[of_it] + tiles.frames[found.image[of_it]][:, [0, 1, 0, 1]].astype(np.float32)
        kept = keep_of_tiles(
            torch.from_numpy(boxes),
            torch.from_numpy(found.scores[of_it]),
            torch.from_numpy(found.labels[of_it]),
            torch.from_numpy(found.image[of_it] - own[0]),
            torch.from_numpy(tiles.frames[own]).float(),
            nms_iou,
        ).numpy()
        chosen = of_it[kept]
        rows = np.full(len(chosen), row, dtype=np.int64)
        parts.append(DetectionArrays(rows, boxes[kept], found.scores[chosen], found.labels[chosen]))
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in parts[0].__dataclass_fields__}
    return DetectionArrays(**columns)


def coco_ap(gt: GroundTruth, det: DetectionArrays, backend: Backend = "faster", max_dets: int = 100) -> APResult:
    """Average precision and recall of `det` against `gt` as COCO defines them.

    AP, and recall by size, count the best 100 detections of an image and class, or `max_dets` where that is more (LVIS:
    300). The recalls at 1, 10 and 100 stay; that at another `max_dets` stands beside them (`AR_max`). A class none of
    whose objects is outside a crowd has no AP. Without any object everything is None, without detections 0.

    Raises:
        ConfigError: hotcoco is asked for, but not installed.
        DataError: an image row or a label of `det` is out of range, or its arrays differ in length.
        NonFiniteError: a box or score of `det` is NaN or infinite.
    """
    check_detections(gt, det)
    limits = sorted({*_HEADLINE_LIMITS, max_dets})
    shape = (len(IOU_THRESHOLDS), len(RECALL_THRESHOLDS), len(gt.categories), len(_AREAS), len(limits))
    precision, recall = -np.ones(shape), -np.ones((shape[0], *shape[2:]))
    if len(gt.image_ids) and len(gt.categories):
        run = {"faster": _run_faster, "hotcoco": _run_hotcoco, "pycocotools": _run_pycocotools}[backend]
        with contextlib.redirect_stdout(io.StringIO()):  # the libraries report their progress by print
            by_id = run(gt, det, limits)
        # The libraries order classes by category id, we by contiguous label.
        row = _numbers(gt)[1] - 1
        precision, recall = by_id[0][:, :, row], by_id[1][:, row]
    return _summarize(gt, det, precision, recall, limits, backend, max_dets)


def _summarize(
    gt: GroundTruth,
    det: DetectionArrays,
    precision: NDArray[np.float64],
    recall: NDArray[np.float64],
    limits: list[int],
    backend: Backend,
    max_dets: int,
) -> APResult:
    """The numbers of `precision [T, R, K, A, L]` and `recall [T, K, A, L]`, at the last of the ascending limits `[L]`.

    The libraries' own summaries are not used: some of theirs are at a limit of 100 whatever was asked for.
    """
    ap = [precision[..., a, -1] for a in range(len(_AREAS))]
    ar = {limit: defined_mean(recall[:, :, 0, i]) for i, limit in enumerate(limits)}
    counted = np.bincount(gt.labels[~gt.iscrowd], minlength=len(gt.categories))
    names = unique_names(gt.categories)
    return APResult(
        AP=defined_mean(ap[0]),
        AP50=defined_mean(ap[0][0]),
        AP75=defined_mean(ap[0][5]),
        APs=defined_mean(ap[1]),
        APm=defined_mean(ap[2]),
        APl=defined_mean(ap[3]),
        AR1=ar[1],
        AR10=ar[10],
        AR100=ar[100],
        ARs=defined_mean(recall[:, :, 1, -1]),
        ARm=defined_mean(recall[:, :, 2, -1]),
        ARl=defined_mean(recall[:, :, 3, -1]),
        per_class={name: defined_mean(ap[0][:, :, k]) for k, name in enumerate(names)},
        class_boxes={name: int(counted[k]) for k, name in enumerate(names)},
        ap=np.where((ap[0] > -1).all(axis=1), ap[0].mean(axis=1), np.nan),
        precision=ap[0],
        n_images=len(gt.image_ids),
        n_boxes=int(counted.sum()),
        detections=det,
        backend=backend,
        max_dets=max_dets,
        AR_max=ar[max_dets],
    )


def xywh(boxes: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """COCO's boxes of xyxy boxes, in float64.

    A source's `w` does not survive `(x + w) - x` in binary, and its last bit can carry a detection over a size limit or
    an IoU over its threshold. Rounding to 1e-8 px gives back every `w` written with up to 8 decimals bit for bit.
    """
    boxes = boxes.astype(np.float64)
    size = np.round(boxes[:, 2:] - boxes[:, :2], _SIZE_DECIMALS)
    return np.concatenate([boxes[:, :2], size], axis=1)


def _dataset(gt: GroundTruth, annotations: list[dict[str, Any]]) -> dict[str, Any]:
    images, classes = _numbers(gt)
    sizes = zip(images.tolist(), gt.heights.tolist(), gt.widths.tolist(), strict=True)
    return {
        "info": {},  # pycocotools < 2.0.11 and third-party readers fail without it
        "images": [{"id": i, "height": h, "width": w} for i, h, w in sizes],
        "categories": [{"id": n, "name": c.name} for n, c in zip(classes.tolist(), gt.categories, strict=True)],
        "annotations": annotations,
    }


def _annotations(gt: GroundTruth) -> dict[str, Any]:
    """The ground truth as a COCO data set; ids from 1, because 0 means "unmatched" to the matchers."""
    images, classes = _id_columns(gt, gt.box_image, gt.labels)
    rows = zip(images.tolist(), classes.tolist(), xywh(gt.boxes).tolist(), gt.area, gt.iscrowd, strict=True)
    return _dataset(
        gt,
        [
            {"id": n, "image_id": i, "category_id": c, "bbox": b, "area": float(a), "iscrowd": int(crowd)}
            for n, (i, c, b, a, crowd) in enumerate(rows, start=1)
        ],
    )


def _results(gt: GroundTruth, det: DetectionArrays) -> dict[str, Any]:
    """The detections as what `loadRes` would make of them: that function fails on an empty list and adds polygons."""
    images, classes = _id_columns(gt, det.image, det.labels)
    rows = zip(images.tolist(), classes.tolist(), xywh(det.boxes).tolist(), det.scores.tolist(), strict=True)
    return _dataset(
        gt,
        [
            {"id": n, "image_id": i, "category_id": c, "bbox": b, "area": b[2] * b[3], "iscrowd": 0, "score": s}
            for n, (i, c, b, s) in enumerate(rows, start=1)
        ],
    )


def _id_columns(
    gt: GroundTruth, image: NDArray[np.int64], labels: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    images, classes = _numbers(gt)
    return images[image], classes[labels]


def _numbers(gt: GroundTruth) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Numbers 1, 2, ... of the images and of the classes, in order of their ids: what the libraries see as ids."""
    category_ids = np.array([c.id for c in gt.categories], dtype=np.int64)
    return _ranks(gt.image_ids) + 1, _ranks(category_ids) + 1


def _ranks(values: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.argsort(np.argsort(values))


def _run_faster(
    gt: GroundTruth, det: DetectionArrays, limits: list[int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    from faster_coco_eval import COCO, COCOeval_faster

    coco_eval = COCOeval_faster(COCO(_annotations(gt)), COCO(_results(gt, det)), iouType="bbox")
    coco_eval.params.maxDets = limits
    coco_eval.evaluate()
    coco_eval.accumulate()
    return np.asarray(coco_eval.eval["precision"]), np.asarray(coco_eval.eval["recall"])


def _run_hotcoco(
    gt: GroundTruth, det: DetectionArrays, limits: list[int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    try:
        from hotcoco import COCO, COCOeval
    except ImportError as error:
        raise ConfigError(
            "evaluation.backend=hotcoco needs hotcoco, which is not installed: pip install 'mgdet[hotcoco]', "
            "or take evaluation.backend=faster, which gives the same numbers"
        ) from error
    known = _dataset(gt, [])
    images, classes = _id_columns(gt, gt.box_image, gt.labels)
    objects = COCO.from_arrays(
        known["images"],
        known["categories"],
        images,
        classes,
        xywh(gt.boxes),
        area=gt.area.astype(np.float64),
        iscrowd=gt.iscrowd,
    )
    images, classes = _id_columns(gt, det.image, det.labels)
    columns = np.column_stack([images, xywh(det.boxes), det.scores, classes])
    coco_eval = COCOeval(objects, objects.load_res(columns.astype(np.float64)), "bbox")
    coco_eval.params.max_dets = limits
    coco_eval.evaluate()
    coco_eval.accumulate()
    found = coco_eval.eval
    assert found is not None  # it is accumulated
    return np.asarray(found["precision"]), np.asarray(found["recall"])


def _run_pycocotools(
    gt: GroundTruth, det: DetectionArrays, limits: list[int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    sides = []
    for dataset in (_annotations(gt), _results(gt, det)):
        coco = COCO()
        coco.dataset = dataset
        coco.createIndex()
        sides.append(coco)
    coco_eval = COCOeval(*sides, iouType="bbox")
    coco_eval.params.maxDets = limits
    coco_eval.evaluate()
    coco_eval.accumulate()
    return coco_eval.eval["precision"], coco_eval.eval["recall"]
