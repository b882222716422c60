"""Post-processing that scores every pair of a prior and a class and lets `torch.topk` see all of them."""

import torch
from torchvision.ops import batched_nms

from mgdet.boxes import clip_to_image


def detections_of(settings, predictions, rescoring, sizes, original_sizes):
    """For each image its boxes `[D, 4]`, scores, labels and priors `[D]`."""
    ranking = raw = predictions.logits.sigmoid()
    if predictions.quality is not None:
        ranking = rescoring(raw, predictions.quality)
    passed = rescoring.gate(raw, ranking) > settings.score_threshold
    ranking = torch.where(passed, ranking, 0.0)
    boxes = clip_to_image(predictions.boxes, sizes)
    out = []
    for i in range(len(boxes)):
        scores, labels, priors, first = [], [], [], 0
        for count in predictions.priors.level_counts:
            flat = ranking[i, first : first + count].flatten()
            top, index = flat.topk(min(settings.pre_nms_top_k, len(flat)))
            scores.append(top)
            labels.append(index % raw.shape[2])
            priors.append(index // raw.shape[2] + first)
            first += count
        scores, labels, priors = torch.cat(scores), torch.cat(labels), torch.cat(priors)
        over = scores > 0
        scores, labels, priors = scores[over], labels[over], priors[over]
        keep = batched_nms(boxes[i, priors], scores, labels, settings.nms_iou)[: settings.max_detections]
        scale = (original_sizes[i] / sizes[i]).flip(0).repeat(2)
        out.append((boxes[i, priors[keep]] * scale, scores[keep], labels[keep], priors[keep]))
    return out
