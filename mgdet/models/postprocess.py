"""From raw predictions to final detections: threshold, top-k per level, NMS per class."""

import torch
from pydantic import Field
from torch import Tensor
from torchvision.ops import batched_nms

from mgdet.boxes import clip_to_image
from mgdet.config_base import Config
from mgdet.structures import Detections, Predictions, Priors


class PostProcess(Config):
    """The test-time settings; defaults are COCO's usual ones for RetinaNet."""

    score_threshold: float = Field(default=0.05, ge=0, lt=1, description="scores up to this are dropped before NMS")
    nms_iou: float = Field(default=0.5, gt=0, le=1, description="same-class boxes that overlap more are suppressed")
    pre_nms_top_k: int = Field(
        default=1000, ge=1, le=100_000, description="candidates kept on each pyramid level before NMS"
    )
    max_detections: int = Field(default=100, ge=1, le=10_000, description="detections kept per image")

    @torch.no_grad()
    def __call__(
        self,
        scores: Tensor,
        predictions: Predictions,
        sizes: Tensor,
        original_sizes: Tensor,
        gate: Tensor | None = None,
    ) -> Detections:
        """Final detections in the pixels of the original files.

        `scores` `[B, A, C]` are the ranking scores (after rescoring, if any); `gate` `[B, A, C]` those that the
        threshold applies to, if others; `sizes` and `original_sizes` `[B, 2]` are (height, width) of the network input
        without padding and of the file.
        """
        boxes = clip_to_image(predictions.boxes.float(), sizes)
        passed = (scores if gate is None else gate) > self.score_threshold
        candidates = self._candidates(torch.where(passed, scores.float(), 0.0), boxes, predictions.priors)
        scale = (original_sizes / sizes).flip(-1).repeat(1, 2).float()
        kept = [self._suppress(*(c[i] for c in candidates)) for i in range(len(boxes))]
        rows = max((len(k[1]) for k in kept), default=0)
        out = Detections(
            boxes.new_zeros(len(boxes), rows, 4),
            boxes.new_zeros(len(boxes), rows),
            torch.zeros(len(boxes), rows, dtype=torch.int64, device=boxes.device),
            torch.zeros(len(boxes), rows, dtype=torch.bool, device=boxes.device),
            torch.zeros(len(boxes), rows, dtype=torch.int64, device=boxes.device),
        )
        for i, (image_boxes, image_scores, image_labels, image_priors) in enumerate(kept):
            n = len(image_scores)
            out.boxes[i, :n] = image_boxes * scale[i]
            out.scores[i, :n] = image_scores
            out.labels[i, :n] = image_labels
            out.valid[i, :n] = True
            out.priors[i, :n] = image_priors
        return out

    def _candidates(self, scores: Tensor, boxes: Tensor, priors: Priors) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The best (prior, class) pairs of each level: boxes `[B, K, 4]`, and `[B, K]` scores, labels and priors."""
        num_classes = scores.shape[-1]
        level_scores, level_labels, level_priors, first = [], [], [], 0
        for s in torch.split(scores, list(priors.level_counts), 1):
            flat = s.flatten(1)
            top, index = flat.topk(min(self.pre_nms_top_k, flat.shape[1]), dim=1)
            level_scores.append(top)
            level_labels.append(index % num_classes)
            level_priors.append(index.div(num_classes, rounding_mode="floor") + first)
            first += s.shape[1]
        prior = torch.cat(level_priors, 1)
        chosen = boxes.gather(1, prior[..., None].expand(-1, -1, 4))
        return chosen, torch.cat(level_scores, 1), torch.cat(level_labels, 1), prior

    def _suppress(self, boxes: Tensor, scores: Tensor, labels: Tensor, priors: Tensor) -> tuple[Tensor, ...]:
        over = scores > 0  # what did not pass the threshold was set to 0
        boxes, scores, labels, priors = boxes[over], scores[over], labels[over], priors[over]
        keep = batched_nms(boxes, scores, labels, self.nms_iou)[: self.max_detections]
        return boxes[keep], scores[keep], labels[keep], priors[keep]
