"""Dense predictions with known objects, and 25 ways to change how well they detect."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mgdet.boxes import pairwise_iou
from mgdet.evaluation import DetectionArrays, Evaluator
from mgdet.ground_truth import GroundTruth
from mgdet.models.postprocess import PostProcess
from mgdet.models.rescoring import Rescoring
from mgdet.structures import Batch, Category, Detections, Predictions, Priors, Targets, pad_targets


class Scene(NamedTuple):
    """The predictions of a detector for `N` images before suppression, in pixels of the original files."""

    truth: GroundTruth
    boxes: Tensor  # [N, A, 4]
    scores: Tensor  # [N, A, C]
    postprocess: PostProcess

    @property
    def sizes(self) -> Tensor:
        return torch.from_numpy(np.stack([self.truth.heights, self.truth.widths], axis=1))

    @property
    def targets(self) -> Targets:
        truth, rows = self.truth, range(len(self.boxes))
        mine = [np.flatnonzero((truth.box_image == row) & ~truth.iscrowd) for row in rows]
        labels = [torch.from_numpy(truth.labels[m]) for m in mine]
        return pad_targets([torch.from_numpy(truth.boxes[m]).float() for m in mine], labels)

    def predictions(self) -> Predictions:
        images, count = self.boxes.shape[:2]
        priors = Priors(self.boxes[0], torch.full((count,), 8.0), (count,))
        return Predictions(priors, torch.logit(self.scores), torch.zeros(images, count, 4), self.boxes)

    def detections(self) -> Detections:
        found = self.postprocess(self.predictions(), Rescoring(), self.sizes, self.sizes)
        image = torch.arange(len(self.boxes))[:, None]  # to the bit: sigmoid is not the inverse of logit
        return found.replace(scores=self.scores[image, found.priors, found.labels] * found.valid)

    def nearest(self) -> tuple[Tensor, Tensor]:
        """IoU with the object of the highest IoU and its index, both `[N, A]`; 0 where there is none."""
        targets = self.targets
        iou = pairwise_iou(self.boxes, targets.boxes) * targets.valid[:, None]
        if not iou.shape[2]:
            return torch.zeros(iou.shape[:2]), torch.zeros(iou.shape[:2], dtype=torch.int64)
        value, index = iou.max(dim=2)
        return value, index


def measured(scene: Scene) -> dict[str, float]:
    """All metrics of the scene, as a training would record them."""
    evaluator = Evaluator(scene.truth)
    positions = torch.arange(len(scene.boxes))
    ids = torch.from_numpy(scene.truth.image_ids)
    images = torch.zeros(len(positions), 3, 1, 1, dtype=torch.uint8)
    batch = Batch(images, scene.sizes, scene.sizes, scene.targets, ids, positions)
    evaluator.update(batch, scene.predictions(), scene.detections(), {"raw": scene.scores})
    return evaluator.compute().metrics()


def _logits(scene: Scene, change: Callable[[Tensor], Tensor]) -> Scene:
    return scene._replace(scores=change(torch.logit(scene.scores.double(), eps=1e-9)).sigmoid().float())


def _normal(shape: tuple[int, ...] | torch.Size, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _same(scene: Scene) -> Scene:
    return scene


def _score_noise(scene: Scene, sigma: float) -> Scene:
    return _logits(scene, lambda x: x + sigma * _normal(x.shape))


def _sharper(scene: Scene, factor: float) -> Scene:
    """A monotone change of all scores that keeps 0.3 where it is, so that about as many pass the threshold."""
    fixed = torch.logit(torch.tensor(0.3, dtype=torch.float64))
    return _logits(scene, lambda x: (x - fixed) * factor + fixed)


def _class_offsets(scene: Scene, sigma: float) -> Scene:
    return _logits(scene, lambda x: x + sigma * _normal(x.shape[-1:]))


def _object_offsets(scene: Scene, sigma: float) -> Scene:
    """Every object has an offset of its own, which all of its boxes share."""
    _, index = scene.nearest()
    offset = _normal((len(index), int(index.max()) + 1)).gather(1, index)
    return _logits(scene, lambda x: x + sigma * offset[..., None])


def _with_quality(scene: Scene, exponent: float) -> Scene:
    """The score `p^(1 - a) u^a` with the true IoU u."""
    iou, _ = scene.nearest()
    return scene._replace(scores=scene.scores ** (1 - exponent) * iou[..., None] ** exponent)


def _against_quality(scene: Scene) -> Scene:
    """The better a box fits, the more its score is lowered."""
    iou, _ = scene.nearest()
    return scene._replace(scores=scene.scores * (1.1 - iou[..., None]))


def _jitter(scene: Scene, sigma: float) -> Scene:
    size = (scene.boxes[..., 2:] - scene.boxes[..., :2]).repeat(1, 1, 2)
    return scene._replace(boxes=_ordered(scene.boxes + sigma * size * _normal(scene.boxes.shape)))


def _jitter_of_the_best(scene: Scene, sigma: float) -> Scene:
    """Boxes move by as much as their score says that they should not."""
    size = (scene.boxes[..., 2:] - scene.boxes[..., :2]).repeat(1, 1, 2)
    moved = sigma * size * _normal(scene.boxes.shape) * scene.scores.amax(-1, keepdim=True)
    return scene._replace(boxes=_ordered(scene.boxes + moved))


def _scaled(scene: Scene, factor: float) -> Scene:
    low, high = scene.boxes.split(2, dim=-1)
    middle, half = (low + high) / 2, (high - low) / 2 * factor
    return scene._replace(boxes=torch.cat([middle - half, middle + half], dim=-1))


def _suppressed_only(scene: Scene, agree: bool) -> Scene:
    """Suppressed boxes that overlap an object are drawn to it: the best scored most, or least.

    Only those move that the same detections suppress before and after, so that what is detected stays as it is.
    """
    iou, index = scene.nearest()
    kept = scene.detections()
    free = (iou >= 0.5).scatter(1, torch.where(kept.valid, kept.priors, kept.priors[:, :1]), False)
    score, label = scene.scores.max(-1)
    place = (2 * index + torch.where(free, score, 1.5)).argsort(1).argsort(1)  # by object, free boxes first, by score
    rows = torch.zeros(len(index), int(index.max()) + 1)
    total, moving = (rows.scatter_add(1, index, t.float()) for t in (torch.ones_like(score), free))
    below = (place - (total.cumsum(1) - total).gather(1, index)) / moving.gather(1, index).clamp(min=1)
    objects = scene.targets.boxes.gather(1, index[..., None].expand(-1, -1, 4))
    moved = torch.lerp(scene.boxes, objects, 0.9 * (below if agree else 1 - below)[..., None])
    by = (label[..., None] == kept.labels[:, None]) & kept.valid[:, None] & (kept.scores[:, None] >= score[..., None])
    for boxes in (scene.boxes, moved):
        by &= pairwise_iou(boxes, kept.boxes) > scene.postprocess.nms_iou
    return scene._replace(boxes=torch.where((free & by.any(-1))[..., None], moved, scene.boxes))


def _lost(scene: Scene, share: float) -> Scene:
    """No box near a part of the objects has a score."""
    iou, index = scene.nearest()
    lost = torch.rand(len(iou), int(index.max()) + 1, generator=torch.Generator().manual_seed(0)) < share
    gone = lost.gather(1, index) & (iou > 0.1)
    return scene._replace(scores=scene.scores.masked_fill(gone[..., None], 0.0))


def _false_positives(scene: Scene, share: float, low: float, high: float) -> Scene:
    """So many more boxes at random places as a share of the objects, with scores between two bounds."""
    generator = torch.Generator().manual_seed(0)
    images, _, classes = scene.scores.shape
    count = max(1, round(share * len(scene.truth.boxes) / images))
    size = scene.sizes.flip(1)[:, None].float()
    corner = torch.rand(images, count, 2, generator=generator) * size * 0.8
    boxes = torch.cat([corner, corner + size * (0.05 + 0.15 * torch.rand(images, count, 2, generator=generator))], -1)
    scores = torch.zeros(images, count, classes)
    labels = torch.randint(classes, (images, count, 1), generator=generator)
    scores.scatter_(2, labels, low + (high - low) * torch.rand(images, count, 1, generator=generator))
    return scene._replace(boxes=torch.cat([scene.boxes, boxes], 1), scores=torch.cat([scene.scores, scores], 1))


def _ordered(boxes: Tensor) -> Tensor:
    low, high = boxes.split(2, dim=-1)
    return torch.cat([torch.minimum(low, high - 1), torch.maximum(high, low + 1)], dim=-1)


PERTURBATIONS: dict[str, Callable[[Scene], Scene]] = {
    "none": _same,
    "score noise 0.5": lambda s: _score_noise(s, 0.5),
    "score noise 1": lambda s: _score_noise(s, 1.0),
    "score noise 2": lambda s: _score_noise(s, 2.0),
    "scores sharper": lambda s: _sharper(s, 1.5),
    "scores flatter": lambda s: _sharper(s, 0.75),
    "class offsets 0.5": lambda s: _class_offsets(s, 0.5),
    "class offsets 1": lambda s: _class_offsets(s, 1.0),
    "object offsets 1": lambda s: _object_offsets(s, 1.0),
    "object offsets 2": lambda s: _object_offsets(s, 2.0),
    "p^.75 u^.25": lambda s: _with_quality(s, 0.25),
    "p^.5 u^.5": lambda s: _with_quality(s, 0.5),
    "p^.25 u^.75": lambda s: _with_quality(s, 0.75),
    "p^.1 u^.9": lambda s: _with_quality(s, 0.9),
    "p (1.1 - u)": _against_quality,
    "jitter 2 %": lambda s: _jitter(s, 0.02),
    "jitter 5 %": lambda s: _jitter(s, 0.05),
    "jitter 10 %": lambda s: _jitter(s, 0.1),
    "jitter of the best 20 %": lambda s: _jitter_of_the_best(s, 0.2),
    "boxes 10 % smaller": lambda s: _scaled(s, 0.9),
    "suppressed boxes agree": lambda s: _suppressed_only(s, True),
    "suppressed boxes disagree": lambda s: _suppressed_only(s, False),
    "30 % of the objects lost": lambda s: _lost(s, 0.3),
    "confident false positives": lambda s: _false_positives(s, 0.3, 0.5, 1.0),
    "weak false positives": lambda s: _false_positives(s, 1.0, 0.05, 0.3),
}


def stored_predictions() -> Scene:
    """Predictions of a real network for 32 validation images of BCCD (640 x 480 pixels), and their objects.

    `bccd_predictions.npz` holds, of `configs/bccd_fcos_mutual_labeling.yaml` after three epochs, the 150 best scored
    predictions of each image and all with an IoU of at least 0.5, in float16.
    """
    data = dict(np.load(Path(__file__).with_name("bccd_predictions.npz")))
    image = data["image"].astype(np.int64)
    count = np.bincount(image)
    place = np.arange(len(image)) - np.repeat(np.cumsum(count) - count, count)
    boxes = torch.tensor([0.0, 0, 1, 1]).repeat(len(count), int(count.max()), 1)
    scores = torch.zeros(*boxes.shape[:2], data["scores"].shape[1])
    boxes[image, place] = torch.from_numpy(data["boxes"].astype(np.float32))
    scores[image, place] = torch.from_numpy(data["scores"].astype(np.float32))
    objects = data["objects"].astype(np.float64)
    truth = GroundTruth(
        image_ids=np.arange(len(count)) + 1,
        heights=np.full(len(count), 480),
        widths=np.full(len(count), 640),
        box_image=data["box_image"].astype(np.int64),
        boxes=objects,
        labels=data["labels"].astype(np.int64),
        iscrowd=data["crowd"],
        area=np.prod(objects[:, 2:] - objects[:, :2], axis=1),
        categories=tuple(Category(i + 1, name) for i, name in enumerate(("RBC", "WBC", "Platelets"))),
    )
    return Scene(truth, boxes, scores, PostProcess(nms_iou=0.6))


def around_detections(truth: GroundTruth, found: DetectionArrays, copies: int = 6, seed: int = 0) -> Scene:
    """Predictions from which suppression makes about the given detections: each one, and boxes that it suppresses."""
    generator = torch.Generator().manual_seed(seed)
    images, classes = len(truth.image_ids), len(truth.categories)
    most = int(np.bincount(found.image, minlength=images).max()) * copies
    boxes, scores = torch.tensor([0.0, 0, 1, 1]).repeat(images, most, 1), torch.zeros(images, most, classes)
    for image in range(images):
        mine = np.flatnonzero(found.image == image)
        own = torch.from_numpy(found.boxes[mine]).float().repeat_interleave(copies, 0)
        label = torch.from_numpy(found.labels[mine]).repeat_interleave(copies)
        copy = torch.arange(len(own)) % copies > 0
        extent = (own[:, 2:] - own[:, :2]).repeat(1, 2)
        moved = _ordered(own + 0.06 * extent * torch.randn(own.shape, generator=generator))
        lower = torch.where(copy, 0.3 + 0.65 * torch.rand(len(own), generator=generator), 1.0)
        boxes[image, : len(own)] = torch.where(copy[:, None], moved, own)
        score = torch.from_numpy(found.scores[mine]).float().repeat_interleave(copies) * lower
        scores[image, torch.arange(len(own)), label] = score
    return Scene(truth, boxes, scores, PostProcess())


def around_objects(truth: GroundTruth, seed: int = 0, copies: int = 14, background: int = 40) -> Scene:
    """What a detector that is neither blind nor perfect might predict for these objects.

    Objects differ in how hard they are. Around each lie boxes that fit it more or less; the score of a box for the
    object's class rises with its IoU and falls with the difficulty, and part of it is chance. Other boxes lie anywhere.
    """
    generator = torch.Generator().manual_seed(seed)
    images, classes = len(truth.image_ids), len(truth.categories)
    nowhere = torch.zeros(images, background, 4)
    nowhere[..., 2:] = 1
    scene = Scene(truth, nowhere, torch.zeros(images, background, classes), PostProcess())
    elsewhere = _false_positives(scene, background * images / max(1, len(truth.boxes)), 0.0, 0.06)
    targets = scene.targets
    objects, labels = (t.repeat_interleave(copies, 1) for t in (targets.boxes, targets.labels))
    hardness = torch.randn(targets.labels.shape, generator=generator).repeat_interleave(copies, 1)
    extent = (objects[..., 2:] - objects[..., :2]).repeat(1, 1, 2)
    spread = 0.02 + 0.05 * torch.rand(labels.shape, generator=generator) + 0.04 * hardness.sigmoid()
    moved = _ordered(objects + spread[..., None] * extent * torch.randn(objects.shape, generator=generator))
    iou = torch.diagonal(pairwise_iou(moved, objects), dim1=1, dim2=2)
    logit = 5 * (iou - 0.7) - 1.2 * hardness + 0.8 * torch.randn(labels.shape, generator=generator)
    others = torch.randn(*labels.shape, classes, generator=generator) - 4
    scores = others.scatter(2, labels[..., None], logit[..., None]).sigmoid()
    valid = targets.valid.repeat_interleave(copies, 1)[..., None]
    scores, moved = torch.where(valid, scores, 0.0), torch.where(valid, moved, nowhere[0, 0])
    return scene._replace(boxes=torch.cat([elsewhere.boxes, moved], 1), scores=torch.cat([elsewhere.scores, scores], 1))
