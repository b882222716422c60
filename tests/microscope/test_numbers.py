"""The microscope's numbers are those of the assigners, and every file says the same."""

import base64
import io
import json
import re
import zlib

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from mgdet.assign import (
    ATSS,
    DDOD,
    DW,
    AutoAssign,
    CenterSampling,
    MaxIoU,
    MuSu,
    MutualGuidance,
    MutualLabeling,
    SimOTA,
    TaskAligned,
)
from mgdet.assign.geometry import Sides
from mgdet.assign.ignore import ignore_regions
from mgdet.assign.places import ALL
from mgdet.boxes import iou
from mgdet.microscope.criteria import rankings
from mgdet.microscope.numbers import TASKS, Findings, Moment, Picture, examine
from mgdet.microscope.page import described, page
from mgdet.microscope.pictures import draw
from mgdet.microscope.tables import parquet, summary
from mgdet.structures import IGNORED, NEGATIVE
from tests.assign.helpers import LAYOUTS, named_inputs
from tests.reference.microscope import counted, rank

ASSIGNERS = {
    "anchors": {
        "max_iou": MaxIoU(),
        "max_iou:force_match=false": MaxIoU(force_match=False),
        "center_sampling": CenterSampling(),
        "atss": ATSS(),
        "task_aligned": TaskAligned(),
        "simota": SimOTA(),
        "mutual_guidance": MutualGuidance(),
        "mutual_labeling": MutualLabeling(),
    },
    "three anchors": {"mutual_guidance:loc_to_cls": MutualGuidance(direction="loc_to_cls"), "max_iou": MaxIoU()},
    "points": {
        "center_sampling": CenterSampling(),
        "mutual_guidance": MutualGuidance(),
        "simota": SimOTA(),
        "ddod": DDOD(),
        "musu": MuSu(),
        "auto_assign": AutoAssign(),
        "dw": DW(),
    },
}
NEAR = 4


def looked_at(layout, seed=0, objects=5, crowd=True, **options):
    """A batch of one image, the assigners without `auto`, and what `examine` gives."""
    priors, predictions, targets = named_inputs(seed, layout, images=1, objects=objects, clean=True, **options)
    if crowd:
        targets = targets.replace(regions=torch.tensor([[[0.0, 0.0, 24.0, 24.0]]]))
    assigners = {name: each.resolved_for(priors.layout) for name, each in ASSIGNERS[layout].items()}
    shown = examine(predictions, targets, assigners, near=NEAR, ignore_overlap=0.5, epoch=1.0)
    return predictions, targets, assigners, shown


def labels_of(predictions, targets, assigner):
    """Straight from the assigner, as a training asks it: the owners of all priors, by task."""
    found = ignore_regions(assigner(predictions, targets), predictions.priors, targets.regions, 0.5)
    return {task: getattr(found, task).gt_index[0].tolist() for task in TASKS}


def findings(layout="anchors", **options):
    predictions, targets, assigners, shown = looked_at(layout, **options)
    canvas = LAYOUTS[layout]["canvas"]
    picture = Picture(
        7,
        "a </script> b.png",
        torch.full((3, canvas, canvas), 200, dtype=torch.uint8),
        targets.boxes[0].numpy(),
        targets.labels[0].numpy(),
        targets.regions[0].numpy(),
    )
    about = dict.fromkeys(("source", "name", "network", "detector", "data", "assigner"), "x")
    moments = (Moment("step 3 (epoch 1)", 3, 1),)
    found = Findings(about, ("red", "green", "blue"), False, assigners, (picture,), moments, {(0, 0): shown})
    return predictions, targets, assigners, found


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("objects", [0, 1, 6])
def test_counts_and_labels_are_those_of_the_assigner(layout, objects):
    predictions, targets, assigners, shown = looked_at(layout, seed=objects, objects=objects)
    counts = predictions.priors.level_counts
    levels = [level for level, count in enumerate(counts) for _ in range(count)]
    for name, assigner in assigners.items():
        direct = labels_of(predictions, targets, assigner)
        for key in TASKS:
            task = getattr(shown.learning[name], key)
            positives, ignored = counted(direct[key], levels, len(counts), objects)
            assert task.positives.tolist() == positives
            assert task.ignored.tolist() == ignored
            assert task.without() == [g for g in range(objects) if g not in direct[key]]
            assert task.owner.tolist() == [direct[key][a] for a in shown.priors]
            matter = {a for a, label in enumerate(direct[key]) if label != NEGATIVE}
            assert matter <= set(shown.priors.tolist()), "every prior that is no background is shown"
        both = [cls >= 0 and loc >= 0 for cls, loc in zip(direct["cls"], direct["loc"], strict=True)]
        assert shown.learning[name].both.sum() == sum(both)
    assert shown.level.tolist() == [levels[a] for a in shown.priors]
    assert any(IGNORED in labels_of(predictions, targets, each)["cls"] for each in assigners.values()), "the crowd"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pairs_have_the_scores_ious_and_ranks_of_the_oracle(layout):
    predictions, targets, assigners, shown = looked_at(layout, seed=3)
    prior, obj = shown.priors[shown.pair_prior], shown.pair_object
    boxes, labels = targets.boxes[0, obj], targets.labels[0, obj]
    near = {"rtol": 1e-6, "atol": 1e-7}  # the last bit depends on the lane of the processor
    np.testing.assert_allclose(shown.iou_after, iou(boxes, predictions.boxes[0, prior]), **near)
    np.testing.assert_allclose(shown.score, predictions.logits[0, prior, labels].sigmoid(), **near)
    if layout != "points":
        np.testing.assert_allclose(shown.iou_before, iou(boxes, predictions.priors.boxes[prior]), **near)
    best = set()  # pairs that are among the best by some criterion
    pairs = list(zip(prior.tolist(), obj.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs)
    for name, assigner in assigners.items():
        for key, ranking in zip(TASKS, rankings(assigner, predictions), strict=True):
            judged = getattr(shown.learning[name], key).judged
            assert (ranking is None) == (judged is None)
            if ranking is None:
                continue
            values = ranking.criterion.quality(targets.boxes, targets.labels, ALL)[0].tolist()
            assert judged.value.tolist() == [values[g][a] for a, g in pairs]
            assert judged.rank.tolist() == [rank(values[g], a) for a, g in pairs]
            for g, row in enumerate(values):
                places = [rank(row, a) for a in range(len(row))]
                clear = {
                    (a, g) for a, place in enumerate(places) if place > 0 and places.count(place) == 1 and place <= NEAR
                }
                assert clear <= set(pairs)
                best |= {(a, g) for a, place in enumerate(places) if 0 < place <= NEAR}
    learning = {
        pair
        for each in shown.learning.values()
        for key in TASKS
        for pair in zip(prior.tolist(), getattr(each, key).owner[shown.pair_prior].tolist(), strict=True)
        if pair[1] >= 0
    }
    assert learning <= set(pairs)
    for a, g in set(pairs) - best - learning:
        owners = [getattr(each, key).owner[shown.priors == a][0] for each in shown.learning.values() for key in TASKS]
        assert IGNORED in owners, (a, g)


def test_a_single_object_learns_from_those_that_rank_first():
    """The criteria that are shown are those by which the assigners choose."""
    compared = 0
    for seed in range(4):
        predictions, targets, _, shown = looked_at("anchors", seed=seed, objects=1, crowd=False)
        inside = (Sides.of(targets.boxes, predictions.priors).nearest()[0, 0] > 0.01)[shown.priors].numpy()
        for name in ("max_iou", "mutual_guidance", "mutual_labeling", "task_aligned"):
            for key in TASKS:
                task = getattr(shown.learning[name], key)
                allowed = inside | (name != "task_aligned")
                ranks = np.where(task.owner[shown.pair_prior] == 0, task.judged.rank, 0)[allowed[shown.pair_prior]]
                others = np.where(task.owner[shown.pair_prior] != 0, task.judged.rank, 10**6)[allowed[shown.pair_prior]]
                if ranks.any():
                    assert ranks.max() < others[others > 0].min(initial=10**6), (seed, name, key)
                    compared += 1
    assert compared > 20


def test_the_task_that_is_not_guided_has_no_criterion_and_a_warm_up_is_named():
    *_, shown = looked_at("three anchors")
    learning = shown.learning["mutual_guidance:loc_to_cls"]
    assert learning.cls.judged.name == "IoU_regressed"
    assert learning.loc.judged is None
    *_, shown = looked_at("anchors")
    assert shown.learning["task_aligned"].warming == "atss"
    assert shown.learning["max_iou"].warming is None


def test_priors_of_one_location_are_drawn_at_different_places_within_its_cell():
    predictions, _, _, shown = looked_at("three anchors")
    assert len(np.unique(shown.places, axis=0)) == len(shown.priors)
    centres = (shown.anchors[:, :2] + shown.anchors[:, 2:]) / 2
    strides = predictions.priors.strides[shown.priors].numpy()
    assert (np.abs(shown.places - centres).max(axis=1) < strides / 2).all()


# --- the files say the same


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("objects", [0, 5])
def test_page_summary_and_table_have_the_labels_of_the_assigner(layout, objects):
    predictions, targets, assigners, found = findings(layout, objects=objects)
    text = page(found)
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])
    assert data == described(found)
    view = json.loads(zlib.decompress(base64.b64decode(data["views"]["0/0"])))
    (told,) = summary(found)["views"]
    table = pq.read_table(io.BytesIO(parquet(found))).to_pylist()
    for name, assigner in assigners.items():
        direct = labels_of(predictions, targets, assigner)
        for key in TASKS:
            wanted = {(a, g) for a, g in enumerate(direct[key]) if g != NEGATIVE}
            owner = view["assigners"][name][key]["owner"]
            assert {(a, g) for a, g in zip(view["priors"], owner, strict=True) if g != NEGATIVE} == wanted
            positives = {pair for pair in wanted if pair[1] >= 0}
            rows = [row for row in table if row["assigner"] == name and row["task"] == key]
            assert {(row["prior"], row["object"]) for row in rows if row["label"] == "positive"} == positives
            assert {row["prior"] for row in rows if row["label"] == "ignored"} == {a for a, _ in wanted - positives}
            of_task = told["assigners"][name][key]
            assert of_task["positives"] == sum(of_task["positives_by_object"]) == len(positives)
            assert of_task["ignored"] == sum(of_task["ignored_by_level"]) == len(wanted - positives)
            assert of_task["objects_without"] == [g for g in range(objects) if g not in direct[key]]
        assert told["assigners"][name]["both"] == sum(
            c >= 0 and o >= 0 for c, o in zip(direct["cls"], direct["loc"], strict=True)
        )
    assert len(told["objects"]) == objects


def test_the_page_needs_nothing_else_and_its_data_cannot_end_its_script():
    text = page(findings()[-1])
    assert text.count("</script>") == 2
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "https://" not in text
    assert not re.search(r"<!--[A-Z]+-->", text)


def test_wild_predictions_are_written_as_numbers():
    priors, predictions, targets = named_inputs(5, "anchors", images=1, objects=4)
    assigners = {"max_iou": MaxIoU(), "mutual_guidance": MutualGuidance().resolved_for(priors.layout)}
    shown = examine(predictions, targets.replace(valid=torch.ones_like(targets.valid)), assigners, near=10**6)
    found = findings()[-1]
    found.shown[0, 0] = shown
    view = json.loads(zlib.decompress(base64.b64decode(described(found)["views"]["0/0"])))
    numbers = np.array([view["boxes"], view["anchors"]])
    assert np.isfinite(numbers).all()


def test_a_picture_has_a_column_for_each_assigner_and_marks_what_learns():
    def pixels(objects, color):
        *_, found = findings("points", objects=objects, crowd=False)
        sheet = np.asarray(Image.open(io.BytesIO(draw(found, 0, 0))))
        assert sheet.shape[1] > 300 * len(found.assigners)
        return int((sheet == color).all(axis=2).sum())

    both = (0, 158, 115)
    assert pixels(5, both) > pixels(0, both) > 0, "the legend has the sign as well"
