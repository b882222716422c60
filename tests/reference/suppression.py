"""Greedy non-maximum suppression within each class of each image, one candidate after the other."""

import torch

from tests.reference.geometry import overlap


def kept(boxes, scores, labels, threshold):
    """Which candidates stay `[B, K]`: the better of two, of equal ones the first; a score of 0 is no candidate."""
    out = torch.zeros(scores.shape, dtype=torch.bool)
    for b in range(len(scores)):
        order = sorted((k for k in range(scores.shape[1]) if scores[b, k] > 0), key=lambda k: (-float(scores[b, k]), k))
        for k in order:
            rivals = [j for j in range(scores.shape[1]) if out[b, j] and labels[b, j] == labels[b, k]]
            out[b, k] = all(overlap(boxes[b, j].tolist(), boxes[b, k].tolist()) <= threshold for j in rivals)
    return out
