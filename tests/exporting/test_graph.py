"""The graph that is exported computes what the detector and its post-processing do."""

import io

import numpy as np
import pytest
import torch
from torch import nn

from mgdet.exporting.graph import DetectionGraph, suppress_with_torchvision
from mgdet.exporting.onnx import _suppress
from mgdet.exporting.verify import Rows, compare
from tests.exporting.networks import untrained
from tests.reference.suppression import kept


def inputs(batch=2, height=96, width=64):
    images = torch.randint(0, 256, (batch, 3, height, width), generator=torch.Generator().manual_seed(1)).byte()
    sizes = torch.tensor([[height, width], [height - 6, width - 14]] * batch)[:batch]
    return images, sizes, sizes * 3 + 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("retinanet", {}),
        ("retinanet", {"model__postprocess": {"pre_nms_top_k": 2000}}),  # above torchvision's limit, and all pairs
        ("fcos", {}),
        pytest.param("fcos", {"model__rescoring": {"combine": "product"}}, marks=pytest.mark.exhaustive),
    ],
)
def test_it_gives_the_detections(name, changes, tmp_path):
    detector = untrained(tmp_path, name, **changes).detector
    settings = detector.config.postprocess
    images, sizes, original = inputs()
    expected, _ = detector.detect(detector(images, sizes), sizes, original)
    for dynamic in (False, True):
        graph = DetectionGraph(detector, suppress_with_torchvision, dynamic)
        boxes, scores, labels, counts = graph(images, sizes, original)
        assert boxes.shape == (2, settings.max_detections, 4)
        assert counts.tolist() == expected.valid.sum(dim=1).tolist()
        assert counts.max() > 20
        for i, n in enumerate(counts.tolist()):
            theirs = Rows(boxes[i, :n], scores[i, :n], labels[i, :n])
            ours = Rows(expected.boxes[i, :n], expected.scores[i, :n], expected.labels[i, :n])
            compared = compare(ours, theirs, settings)
            assert (compared.different, compared.undecided) == ((), 0)
            assert not any(column[i, n:].any() for column in (boxes, scores, labels))


class OnlySuppression(nn.Module):
    def __init__(self, suppress):
        super().__init__()
        self.suppress = suppress

    def forward(self, boxes, scores, labels):
        return self.suppress(boxes, scores, labels, 0.5, 3)


def candidates(seed):
    """Boxes on a coarse grid with few different scores: many ties, many overlaps of exactly the threshold."""
    rng = np.random.default_rng(seed)
    low = rng.integers(0, 5, (2, 40, 2)) * 4.0
    boxes = torch.tensor(np.concatenate([low, low + rng.integers(0, 4, (2, 40, 2)) * 4.0], axis=2), dtype=torch.float32)
    return boxes, torch.tensor(rng.integers(0, 4, (2, 40)) / 4.0).float(), torch.tensor(rng.integers(0, 3, (2, 40)))


def test_suppression_is_greedy_with_the_first_of_equal_scores(tmp_path):
    import onnxruntime

    file = io.BytesIO()
    names = {"input_names": ["boxes", "scores", "labels"], "dynamo": False, "opset_version": 18}
    torch.onnx.export(OnlySuppression(_suppress), candidates(0), file, **names)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    for seed in range(5):
        boxes, scores, labels = candidates(seed)
        expected = kept(boxes, scores, labels, 0.5)
        assert torch.equal(suppress_with_torchvision(boxes, scores, labels, 0.5, 3), expected)
        feed = {"boxes": boxes.numpy(), "scores": scores.numpy(), "labels": labels.numpy()}
        assert np.array_equal(session.run(None, feed)[0], expected.numpy())
    nothing = torch.zeros(2, 40)
    assert not suppress_with_torchvision(boxes, nothing, labels, 0.5, 3).any()
    assert not session.run(None, {**feed, "scores": nothing.numpy()})[0].any()
