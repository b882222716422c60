"""Wrong labels that are planted into right ones are found, each as what it is, and right ones are not."""

import numpy as np
import pytest

from mgdet.diagnosis.base import Data
from mgdet.diagnosis.labels import Detected, Judged, confident_scores, labels, suspects
from mgdet.structures import Category
from tests.diagnosis.test_priors import split_of

CONFIDENT = np.array([0.6, 0.6])


def detected(*rows):
    """Detections from (box, score, label)."""
    boxes, scores, kinds = zip(*rows, strict=True) if rows else ((), (), ())
    return Detected(np.array(boxes, dtype=float).reshape(-1, 4), np.array(scores, dtype=float), np.array(kinds, int))


def judged(objects, seen):
    boxes, kinds = zip(*objects, strict=True) if objects else ((), ())
    return Judged(np.array(boxes, dtype=float).reshape(-1, 4), np.array(kinds, dtype=int), seen)


A, B, FAR = [0, 0, 20, 20], [40, 0, 60, 20], [0, 60, 20, 80]
SHIFTED = [10, 0, 30, 20]  # IoU 1/3 with A


@pytest.mark.parametrize(
    ("objects", "seen", "wanted"),
    [
        ([(A, 0)], [(A, 0.9, 0)], []),
        ([(A, 0)], [(A, 0.9, 0), (FAR, 0.8, 1)], [("overlooked", -1, 1, 0.8)]),
        ([(A, 0)], [(A, 0.9, 0), (FAR, 0.5, 1)], []),  # not confident
        ([], [(FAR, 0.8, 1)], [("overlooked", -1, 0, 0.8)]),
        ([(A, 0), (B, 0)], [], []),
        ([(A, 0)], [(A, 0.9, 1)], [("swapped", 0, 0, 0.9)]),
        ([(A, 0)], [(A, 0.9, 1), (A, 0.4, 0)], [("swapped", 0, 0, 0.9 * 0.6)]),
        ([(A, 0)], [(A, 0.7, 1), (A, 0.8, 0)], []),  # its own class is the more likely one
        ([(A, 0), (A, 1)], [(A, 0.9, 1), (A, 0.8, 0)], []),
        ([(A, 0)], [(SHIFTED, 0.9, 0)], [("badly_placed", 0, 0, 0.9 * 2 / 3)]),
        ([(A, 0)], [(SHIFTED, 0.9, 0), (A, 0.2, 0)], [("overlooked", -1, 0, 0.9 * 2 / 3)]),  # a neighbour
        ([(A, 0)], [(SHIFTED, 0.9, 0), ([7, 0, 27, 20], 0.2, 0)], [("badly_placed", 0, 0, 0.9 * 2 / 3)]),
        ([(A, 0), (SHIFTED, 0)], [(SHIFTED, 0.9, 0), (A, 0.8, 0)], []),
    ],
)
def test_what_detections_say(objects, seen, wanted):
    found = suspects(judged(objects, detected(*seen)), CONFIDENT)
    assert [tuple(s)[:3] for s in found] == [w[:3] for w in wanted]
    np.testing.assert_allclose([s.suspicion for s in found], [w[3] for w in wanted])


def test_confident_scores_are_the_mean_of_what_matches():
    """Each object counts once, with its best detection; a class without any accuses nobody."""
    images = [
        judged([(A, 0), (B, 0)], detected((A, 0.9, 0), (A, 0.3, 0), (B, 0.5, 0), (FAR, 0.99, 0), (A, 0.9, 1))),
        judged([], detected((A, 0.9, 0))),
        judged([(A, 1)], detected()),
    ]
    assert confident_scores(images, 2).tolist() == [pytest.approx(0.7), np.inf]


def test_planted_faults_are_ranked_above_everything():
    """A detector that is nearly right, 40 objects, and one fault of each kind."""
    rng = np.random.default_rng(3)
    corners = np.stack(np.meshgrid(np.arange(8), np.arange(5)), axis=-1).reshape(-1, 2) * 40.0
    right = np.concatenate([corners, corners + rng.uniform(15, 30, (40, 2))], axis=1)
    kinds = rng.integers(0, 2, 40)
    seen = Detected(right + rng.normal(0, 0.5, right.shape), rng.uniform(0.6, 0.95, 40), kinds.copy())
    seen.scores[[3, 11, 20]] = 0.95
    boxes, labelled = right.copy(), kinds.copy()
    labelled[3] = 1 - labelled[3]
    boxes[11] += 8
    keep = np.arange(40) != 20
    split = split_of(boxes[keep], size=(200, 320), labels=labelled[keep])
    data = Data("x", {"train": split}, (Category(1, "a"), Category(2, "b")), {})
    found = {f.kind: f for f in labels(lambda split: iter([(0, seen)]))(data)}
    assert {kind: [case.object for case in f.cases] for kind, f in found.items()} == {
        "swapped": [3],
        "badly_placed": [11],
        "overlooked": [None],
    }
    np.testing.assert_allclose(found["overlooked"].cases[0].boxes[0], seen.boxes[20])
    assert all(0.1 < case.score <= 1 for f in found.values() for case in f.cases)


def test_crowds_take_no_part():
    split = split_of([A, FAR])
    split.truth.iscrowd[1] = True
    data = Data("x", {"train": split}, (Category(1, "a"), Category(2, "b")), {})
    seen = detected((A, 0.9, 0), ([2, 60, 18, 80], 0.95, 0))
    assert list(labels(lambda split: iter([(0, seen)]))(data)) == []
