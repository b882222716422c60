"""How a predicted quality joins the score, and which score the threshold is compared with."""

import pytest
import torch
from pydantic import ValidationError

from mgdet.models import FCOSConfig
from mgdet.models.postprocess import PostProcess
from mgdet.models.rescoring import Rescoring
from mgdet.structures import Predictions, Priors

P = torch.tensor([[[0.81, 0.04], [0.25, 0.64]]])  # [B, A, C]
LOGITS = torch.tensor([[0.0, -40.0]])  # v = 0.5 and 0


@pytest.mark.parametrize(
    ("rescoring", "expected"),
    [
        (Rescoring(), [[0.405**0.5, 0.02**0.5], [0.0, 0.0]]),
        (Rescoring(combine="product"), [[0.405, 0.02], [0.0, 0.0]]),
        (Rescoring(combine="power", exponent=0.5), [[0.405**0.5, 0.02**0.5], [0.0, 0.0]]),
        (Rescoring(combine="power", exponent=0.25), [[0.81**0.75 * 0.5**0.25, 0.04**0.75 * 0.5**0.25], [0.0, 0.0]]),
        (Rescoring(combine="power", exponent=0.0), P[0].tolist()),
        (Rescoring(combine="power", exponent=1.0), [[0.5, 0.5], [0.0, 0.0]]),
    ],
)
def test_by_hand(rescoring, expected):
    torch.testing.assert_close(rescoring(P, LOGITS), torch.tensor([expected]), atol=1e-4, rtol=1e-5)


def test_extreme_logits_stay_in_range():
    score = torch.tensor([0.0, 1e-38, 0.5, 1.0]).view(1, 4, 1)
    for quality in (-1e4, 0.0, 1e4):
        for combine in ("geometric_mean", "product", "power"):
            out = Rescoring(combine=combine)(score, torch.full((1, 4), quality))
            assert ((out >= 0) & (out <= 1)).all()


def test_product_and_geometric_mean_rank_alike():
    g = torch.Generator().manual_seed(0)
    p, q = torch.rand(1, 200, 3, generator=g), torch.randn(1, 200, generator=g)
    orders = [Rescoring(combine=c)(p, q).flatten().argsort() for c in ("product", "geometric_mean")]
    assert torch.equal(*orders)


def test_an_exponent_is_a_share():
    with pytest.raises(ValidationError):
        Rescoring(combine="power", exponent=1.5)


@pytest.fixture
def far_apart():
    """Three boxes that do not overlap, one class: raw scores 0.9, 0.06, 0.04 with qualities 0.1, 0.9, 0.9."""
    boxes = torch.tensor([[[0.0, 0, 10, 10], [20.0, 0, 30, 10], [40.0, 0, 50, 10]]])
    raw = torch.tensor([0.9, 0.06, 0.04]).view(1, 3, 1)
    quality = torch.tensor([[0.1, 0.9, 0.9]]).logit()
    priors = Priors(boxes[0], torch.full((3,), 8.0), (3,))
    return Predictions(priors, raw.logit(), torch.zeros(1, 3, 4), boxes, quality)


@pytest.mark.parametrize(
    ("combine", "kept"),
    # thresholds at 0.05: of the product on p (the third is out), of the mean on sqrt(p v) (0.3, 0.23, 0.19: all in)
    [("product", [0.09, 0.054]), ("geometric_mean", [0.3, 0.054**0.5, 0.036**0.5])],
)
def test_the_threshold_is_compared_with_the_score_that_it_was_made_for(combine, kept, far_apart):
    config = FCOSConfig(backbone="resnet18", norm="gn", channels=32, rescoring={"combine": combine})
    network = config.build(1)
    sizes = torch.tensor([[64, 64]])
    detections, scores = network.detect(far_apart, sizes, sizes)
    torch.testing.assert_close(detections.scores[0], torch.tensor(kept), atol=1e-5, rtol=1e-5)
    assert list(scores) == ["raw", "rescored"]


def test_one_key_of_the_post_processing_leaves_the_others_at_the_detectors_own():
    assert FCOSConfig(postprocess={"score_threshold": 0.2}).postprocess.nms_iou == 0.6


def test_suppression_goes_by_the_ranking_score():
    """Two boxes of one object: the one with the better raw score has the worse rescored one and is suppressed."""
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0.0, 0, 10, 9]]])
    priors = Priors(boxes[0], torch.full((2,), 8.0), (2,))
    raw, quality = torch.tensor([[[0.9], [0.5]]]), torch.tensor([[2 / 9, 0.6]])
    predictions = Predictions(priors, raw.logit(), torch.zeros(1, 2, 4), boxes, quality.logit())
    sizes = torch.tensor([[64, 64]])
    out = PostProcess()(predictions, Rescoring(combine="product"), sizes, sizes)
    assert out.scores[0].tolist() == pytest.approx([0.3])
    assert out.boxes[0, 0].tolist() == [0, 0, 10, 9]
    assert out.priors.tolist() == [[1]]
    nothing = PostProcess(score_threshold=0.95)(predictions, Rescoring(combine="product"), sizes, sizes)
    assert nothing.scores.shape == (1, 0)


def test_a_detection_names_the_prediction_that_it_is():
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(2, 40, 2, generator=generator) * 50
    boxes = torch.cat([corner, corner + 1 + torch.rand(2, 40, 2, generator=generator) * 10], dim=2)
    scores = torch.rand(2, 40, 3, generator=generator)
    priors = Priors(boxes[0], torch.full((40,), 8.0), (25, 10, 5))
    predictions = Predictions(priors, scores.logit(), torch.zeros(2, 40, 4), boxes)
    sizes = torch.tensor([[64, 64], [64, 64]])
    found = PostProcess(pre_nms_top_k=12, max_detections=20)(predictions, Rescoring(), sizes, sizes * 2)
    assert found.valid.all()
    assert found.priors.max() >= 25, "of another level than the first"
    image = torch.arange(2)[:, None]
    torch.testing.assert_close(scores[image, found.priors, found.labels], found.scores)
    assert torch.equal(boxes[image, found.priors] * 2, found.boxes)
