"""What counts as the same detections."""

import torch

from mgdet.exporting.verify import Rows, compare
from mgdet.models.postprocess import PostProcess

SETTINGS = PostProcess(score_threshold=0.1, nms_iou=0.5, max_detections=4)


def rows(*detections):
    """Of (x1, width, score, label): boxes 10 pixels high."""
    boxes = [[x, 0.0, x + width, 10.0] for x, width, _, _ in detections]
    return Rows(
        torch.tensor(boxes).view(-1, 4),
        torch.tensor([d[2] for d in detections]),
        torch.tensor([d[3] for d in detections], dtype=torch.int64),
    )


A, B, C = (0.0, 10.0, 0.9, 0), (100.0, 10.0, 0.8, 1), (50.0, 10.0, 0.8, 0)


def test_small_differences_and_the_order_of_equal_scores_are_none():
    other = rows((*A[:2], 0.900005, 0), C, (100.0005, 10.0, 0.8, 1))
    found = compare(rows(A, B, C), other, SETTINGS)
    assert (found.different, found.undecided) == ((), 0)
    assert 0.0004 < found.box_error < 0.0006
    assert 4e-6 < found.score_error < 6e-6
    assert compare(rows(), rows(), SETTINGS) == (0.0, 0.0, 0, ())


def test_differences_are_told_with_numbers():
    (one, two) = compare(rows(A, B), rows(A, (100.25, 10.0, 0.7, 1)), SETTINGS).different
    assert one.startswith(
        "missing: label 1 with score 0.800000 at (100.00, 0.00, 110.00, 10.00); the nearest differs by"
    )
    assert "0.25 px and 0.1" in one
    assert two.startswith("not the checkpoint's: label 1 with score 0.700000")
    assert "no detection of this class" in compare(rows(A, B), rows(A), SETTINGS).different[0]
    assert "detects nothing" in compare(rows(A), rows(), SETTINGS).different[0]
    assert len(compare(rows(A), rows((*A[:3], 1)), SETTINGS).different) == 2, "another class"
    assert len(compare(rows(A), rows(A, A), SETTINGS).different) == 1, "one that is twice there has one partner"


def test_what_rounding_decides_is_no_difference():
    low = (0.0, 10.0, 0.100004, 2)
    assert compare(rows(A, low), rows(A), SETTINGS)[2:] == (1, ())
    full = rows(A, B, C, (200.0, 10.0, 0.5, 0))
    assert compare(full, rows(A, B, C, (300.0, 10.0, 0.499999, 0)), SETTINGS)[2:] == (2, ())
    at_threshold = (0.0, 5.0, 0.7, 0)  # IoU with A: exactly a half
    assert compare(rows(A, at_threshold), rows(A), SETTINGS)[2:] == (1, ())
    # Two boxes that score alike swap, and the one that is left suppresses another one
    first, second = (50.0, 10.0, 0.8, 0), (52.0, 10.0, 0.800001, 0)
    freed = (44.0, 10.0, 0.6, 0)  # overlaps neither by a half
    hidden = (54.0, 10.0, 0.6, 0)  # overlaps the second one by more than a half, and so the first by less
    assert compare(rows(first, hidden), rows(second), SETTINGS)[2:] == (3, ())
    assert len(compare(rows(first, freed), rows(second), SETTINGS).different) == 1
