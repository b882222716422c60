"""What the two divergences see of 25 ways in which a detector can be better or worse."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from mgdet.ground_truth import GroundTruth
from mgdet.structures import Category
from tests.evaluation.perturbations import (
    PERTURBATIONS,
    Scene,
    around_detections,
    around_objects,
    measured,
    stored_predictions,
)
from tests.evaluation.test_coco import det_from, gt_from

DATA = Path(__file__).parents[2].parent / "shared" / "data"
HEADLINE, DENSE, AP = "val/divergence", "val/divergence_pre_nms", "val/AP"


def made_up(seed, images=20, classes=3, each=10):
    rng = np.random.default_rng(seed)
    count = images * each
    corner = rng.uniform(0, 200, (count, 2))
    boxes = np.concatenate([corner, np.minimum(corner + rng.uniform(16, 56, (count, 2)), 256)], axis=1)
    return GroundTruth(
        image_ids=np.arange(images) + 1,
        heights=np.full(images, 256),
        widths=np.full(images, 256),
        box_image=np.repeat(np.arange(images), each),
        boxes=boxes,
        labels=rng.integers(0, classes, count),
        iscrowd=np.zeros(count, dtype=bool),
        area=np.prod(boxes[:, 2:] - boxes[:, :2], axis=1),
        categories=tuple(Category(i + 1, f"c{i}") for i in range(classes)),
    )


def read(*parts):
    path = DATA.joinpath(*parts)
    if not path.is_file():
        pytest.skip(f"there is no {path}")
    return json.loads(path.read_text())


def made_up_scene(seed):
    return around_objects(made_up(seed), seed)


def bccd_scene():
    """Real objects, and predictions about them."""
    return around_objects(gt_from(read("bccd", "annotations", "val.json")).subset(np.arange(30)))


def coco_scene():
    """Published detections in real images. Their scores are as good as independent of their IoU."""
    truth = gt_from(read("coco_eval", "val2014_100", "instances_val2014_100.json"))
    results = read("coco_eval", "val2014_100", "instances_val2014_fakebbox100_results.json")
    return around_detections(truth, det_from(results, truth))


def over_perturbations(scene: Scene):
    return {name: measured(perturb(scene)) for name, perturb in PERTURBATIONS.items()}


def correlation(found, name):
    """Spearman's rho of a metric with AP over all perturbations."""
    return float(spearmanr([m[AP] for m in found.values()], [m[name] for m in found.values()]).statistic)


@pytest.fixture(scope="module")
def found():
    """All metrics of a real network's predictions under each perturbation."""
    return over_perturbations(stored_predictions())


@pytest.mark.slow
def test_there_are_25_ways_and_every_one_but_the_first_changes_something(found):
    assert len(PERTURBATIONS) == 25
    same = [name for name, metrics in found.items() if metrics == found["none"]]
    assert same == ["none"]


@pytest.mark.slow
def test_headline_goes_with_ap_more_closely_than_the_diagnostic(found):
    assert correlation(found, HEADLINE) <= -0.7
    assert correlation(found, HEADLINE) < correlation(found, DENSE) - 0.1


@pytest.mark.slow
def test_headline_goes_with_ap_where_everything_is_made_up():
    found = over_perturbations(made_up_scene(2))
    assert correlation(found, HEADLINE) <= -0.7
    assert correlation(found, HEADLINE) < correlation(found, DENSE)


@pytest.mark.exhaustive
def test_headline_goes_with_ap_in_the_mean_of_made_up_scenes():
    found = [over_perturbations(made_up_scene(seed)) for seed in range(8)]
    headline, dense = (np.mean([correlation(f, name) for f in found]) for name in (HEADLINE, DENSE))
    assert headline <= -0.7
    assert headline < dense


@pytest.mark.exhaustive
def test_headline_goes_with_ap_around_real_objects():
    assert correlation(over_perturbations(bccd_scene()), HEADLINE) <= -0.7


@pytest.mark.slow
def test_diagnostic_moves_with_suppressed_boxes_alone(found):
    """What is detected stays as it is."""
    none, agree, disagree = (found[n] for n in ("none", "suppressed boxes agree", "suppressed boxes disagree"))
    for metrics in (agree, disagree):
        assert metrics[AP] == pytest.approx(none[AP], abs=0.005)
        assert metrics[HEADLINE] == pytest.approx(none[HEADLINE], abs=0.01)
    assert agree[DENSE] < none[DENSE] - 0.1
    assert disagree[DENSE] > none[DENSE] + 0.5


@pytest.mark.slow
def test_diagnostic_does_not_compare_objects(found):
    none, offset = found["none"], found["object offsets 2"]
    assert offset[DENSE] == pytest.approx(none[DENSE], abs=0.005)
    assert offset[AP] < none[AP] - 0.15
    assert offset[HEADLINE] > none[HEADLINE] + 0.05


@pytest.mark.slow
def test_recall_sees_lost_objects_and_the_divergences_do_not(found):
    none, lost = found["none"], found["30 % of the objects lost"]
    assert lost[AP] < none[AP] - 0.1
    assert lost["val/divergence_recall"] < none["val/divergence_recall"] - 0.25
    assert lost["val/divergence_n"] < 0.75 * none["val/divergence_n"]
    assert lost[DENSE] == pytest.approx(none[DENSE], abs=0.02)
    assert lost[HEADLINE] == pytest.approx(none[HEADLINE], abs=0.15)


@pytest.mark.slow
def test_only_ap_sees_false_positives(found):
    none, more = found["none"], found["confident false positives"]
    assert more[AP] < none[AP] - 0.1
    for name in (HEADLINE, DENSE, "val/divergence_recall"):
        assert more[name] == pytest.approx(none[name], abs=0.02)


@pytest.mark.slow
def test_better_ranking_lowers_both_and_raises_ap(found):
    """Much of the divergence is in the ranking: a score p^(1 - a) u^a takes a third of it away, or more."""
    rising = [found[name] for name in ("none", "p^.75 u^.25", "p^.5 u^.5", "p^.25 u^.75")]
    for name in (HEADLINE, DENSE):
        assert sorted((m[name] for m in rising), reverse=True) == [m[name] for m in rising]
        assert rising[-1][name] < 0.67 * rising[0][name]
    assert sorted(m[AP] for m in rising) == [m[AP] for m in rising]


@pytest.mark.exhaustive
def test_published_detections_keep_the_blind_spots_and_show_a_limit():
    """Of the many classes of few matches each the headline is the mean of rhos that are mostly chance."""
    found = over_perturbations(coco_scene())
    test_diagnostic_moves_with_suppressed_boxes_alone(found)
    test_better_ranking_lowers_both_and_raises_ap(found)
    test_only_ap_sees_false_positives(found)
    assert correlation(found, HEADLINE) <= -0.4
