"""A detector as one function of tensors: network, decoding, rescoring, thresholds, top-k and suppression.

It computes what `Detector.forward` and `PostProcess` do, in operations whose number depends on no value, so that it can
be traced once and run for any image. Three things are written differently for that:

- Priors come from the sizes of the maps, and are not remembered.
- Where scores are equal, `torch.topk` promises no order, and `PostProcess` looks at such an image again with all pairs
  of a prior and a class. Here the lower index wins where the runtime promises that, as ONNX does: the same choice.
- All images are suppressed at once.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from mgdet.boxes import clip_to_image
from mgdet.models.anchors import within_image
from mgdet.models.detector import Detector, normalise
from mgdet.structures import Priors

INPUTS = ("images", "sizes", "original_sizes")
OUTPUTS = ("boxes", "scores", "labels", "counts")

CLASSES_SHIFTED_APART = 1000
"""Up to this many candidates torchvision (0.29) suppresses all classes at once on the CPU, with the boxes of each class
shifted apart, which rounds them; above it works class by class (`torchvision.ops.batched_nms`)."""


class Suppress(Protocol):
    """Greedy non-maximum suppression within each class of each image."""

    def __call__(self, boxes: Tensor, scores: Tensor, labels: Tensor, iou: float, classes: int) -> Tensor:
        """Which of `K` candidates stay, `[B, K]` bool, of boxes `[B, K, 4]`, scores and labels `[B, K]`.

        A candidate with score 0 is none. Of two that overlap by more than `iou` the better one stays; of equal scores
        the lower index.
        """


class _Candidates(NamedTuple):
    """The best pairs of a prior and a class, level by level, each level's best first."""

    scores: Tensor  # [B, K]; 0: did not pass the threshold
    labels: Tensor  # [B, K]
    priors: Tensor  # [B, K]


class DetectionGraph(nn.Module):
    """From padded images to final detections.

    Args:
        detector: in evaluation mode; its weights are shared.
        suppress: how suppression is written in the format that this is for.
        dynamic: height and width of the images may differ from call to call.
    """

    def __init__(self, detector: Detector, suppress: Suppress, dynamic: bool) -> None:
        super().__init__()
        self.detector, self.suppress, self.dynamic = detector, suppress, dynamic
        self.settings, self.rescoring = detector.config.postprocess, detector.config.rescoring
        detector.anchor_generator.set_cell_anchors(torch.float32, torch.device("cpu"))
        for level, anchors in enumerate(detector.anchor_generator.cell_anchors):
            self.register_buffer(f"anchors_{level}", anchors, persistent=False)

    def forward(self, images: Tensor, sizes: Tensor, original_sizes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Final detections, the best first.

        Args:
            images: `[B, 3, H, W]` uint8 RGB, resized, and padded with zeros at the right and bottom.
            sizes: `[B, 2]` int64 (height, width) of each without its padding.
            original_sizes: `[B, 2]` int64 (height, width) in whose pixels boxes are wanted.

        Returns:
            Boxes `[B, D, 4]` float32 (x1, y1, x2, y2), scores `[B, D]` float32, labels `[B, D]` int64 and the number of
            detections `[B]` int64, with `D` the most detections of an image; all that is beyond the number is 0.
        """
        detector = self.detector
        features = list(detector.backbone(normalise(images, sizes, detector.mean, detector.std)).values())
        logits, deltas, quality = detector.predict(features, (images.shape[-2], images.shape[-1]))
        anchors, counts = self._anchors(images, features)
        priors = Priors(anchors, anchors.new_zeros(0), (), detector.config.layout)  # coders look at the boxes alone
        boxes = detector.coder.decode(deltas, priors)
        found = self._candidates(logits, quality, counts)
        boxes = clip_to_image(boxes.gather(1, found.priors.unsqueeze(-1).expand(-1, -1, 4)), sizes)
        scores = self._suppressed(boxes, found)
        best, index = _padded(scores, self.settings.max_detections).topk(self.settings.max_detections, dim=1)
        index = index.clamp(max=scores.shape[1] - 1)
        scale = (original_sizes / sizes).flip(-1).repeat(1, 2).float()
        valid = best > 0
        boxes = boxes.gather(1, index.unsqueeze(-1).expand(-1, -1, 4)) * scale.unsqueeze(1)
        labels = found.labels.gather(1, index)
        return (
            torch.where(valid.unsqueeze(-1), boxes, 0.0),
            best,
            torch.where(valid, labels, 0),
            valid.sum(dim=1),
        )

    def _anchors(self, images: Tensor, features: list[Tensor]) -> tuple[Tensor, list[int]]:
        """The boxes of all priors `[A, 4]` and how many each level has; as `grid_priors`."""
        levels, counts = [], []
        for level, feature in enumerate(features):
            cell: Tensor = getattr(self, f"anchors_{level}")
            height, width = feature.shape[-2], feature.shape[-1]
            down, right = images.shape[-2] // height, images.shape[-1] // width
            y = (torch.arange(height, device=images.device) + self.detector.prior_offset) * down
            x = (torch.arange(width, device=images.device) + self.detector.prior_offset) * right
            y, x = y[:, None].expand(height, width).flatten(), x[None].expand(height, width).flatten()
            levels.append((torch.stack([x, y, x, y], dim=1).unsqueeze(1) + cell).flatten(0, 1))
            counts.append(height * width * len(cell))
        anchors = torch.cat(levels)
        if self.detector.priors_fit_image:
            anchors = within_image(anchors, (images.shape[-2], images.shape[-1]))
        return anchors, counts

    def _scores(self, logits: Tensor, quality: Tensor | None) -> Tensor:
        """The scores `[B, N, C]` that rank the detections; 0 where the threshold is not passed."""
        scores = self.rescoring.scores(logits.float(), None if quality is None else quality.float())
        ranking = next(reversed(scores.values()))
        return torch.where(self.rescoring.gate(scores["raw"], ranking) > self.settings.score_threshold, ranking, 0.0)

    def _candidates(self, logits: Tensor, quality: Tensor | None, counts: list[int]) -> _Candidates:
        """The best pairs of each level, which belong to the priors that have the best ones: see `postprocess`."""
        best = self._scores(logits.amax(dim=2, keepdim=True), quality).squeeze(2)
        k, classes, first, levels = self.settings.pre_nms_top_k, logits.shape[2], 0, []
        for count in counts:
            level = best[:, first : first + count]
            if self.dynamic or count < k:
                level = _padded(level, k)
            top, prior = level.topk(k, dim=1)
            # By index, so that of equal pairs the one of the lower prior comes first
            prior, order = prior.sort(dim=1)
            exists = top.gather(1, order) > 0
            prior = prior.clamp(max=count - 1) + first
            own = logits.gather(1, prior.unsqueeze(-1).expand(-1, -1, classes))
            scores = self._scores(own, None if quality is None else quality.gather(1, prior))
            scores, pair = torch.where(exists.unsqueeze(-1), scores, 0.0).flatten(1).topk(k, dim=1)
            prior = prior.gather(1, pair.div(classes, rounding_mode="floor"))
            levels.append(_Candidates(scores, pair % classes, prior))
            first = first + count
        return _Candidates(*(torch.cat(columns, dim=1) for columns in zip(*levels, strict=True)))

    def _suppressed(self, boxes: Tensor, found: _Candidates) -> Tensor:
        """The scores `[B, K]` of the candidates that stay; 0 for the others."""
        valid = found.scores > 0
        apart = torch.where(valid.unsqueeze(-1), boxes, 0.0).amax(dim=(1, 2)) + 1
        apart = torch.where(valid.sum(dim=1) <= CLASSES_SHIFTED_APART, apart, 0.0)
        shifted = boxes + (found.labels * apart.unsqueeze(1)).unsqueeze(-1)
        kept = self.suppress(shifted, found.scores, found.labels, self.settings.nms_iou, self.detector.num_classes)
        return torch.where(kept, found.scores, 0.0)


def suppress_with_torchvision(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float, classes: int) -> Tensor:
    """`Suppress` by one call of torchvision's operator, for formats that torch itself runs.

    Every class of every image is shifted to a place of its own, in float64, which holds the shifted corners exactly.
    """
    batch, count = scores.shape
    group = labels + torch.arange(batch, device=labels.device)[:, None] * classes
    apart = boxes.amax().double() - boxes.amin().double() + 1
    flat, scores = (boxes.double() + (group * apart).unsqueeze(-1)).flatten(0, 1), scores.flatten()
    candidates = (scores > 0).nonzero().squeeze(1)
    kept = candidates[torch.ops.torchvision.nms(flat[candidates], scores[candidates].double(), iou)]
    mask = torch.zeros_like(scores).index_fill(0, kept, 1.0)
    return (mask > 0).view(batch, count)


def _padded(scores: Tensor, count: int) -> Tensor:
    """The scores `[B, N]` with `count` zeros behind them."""
    return torch.cat([scores, scores.new_zeros(1, 1).expand(scores.shape[0], count)], dim=1)
