"""Planted faults are found by id, all of them, and nothing else is."""

import json
from pathlib import Path

import pytest

from mgdet.data.formats import Coco
from mgdet.diagnosis.examine import examine_dataset
from tests.diagnosis.broken import Place, break_copy, shapes_as_coco

BCCD = Path(__file__).parents[2].parent / "shared" / "data" / "bccd"


def examined(splits):
    return examine_dataset(Coco(), splits, workers=1)


def places(found):
    """All cases, by id."""
    return {
        Place(finding.kind, case.split, case.image_id, case.annotation)
        for finding in found.findings
        for case in finding.cases
    }


def without_ids(found):
    return {finding.kind for finding in found.findings if not finding.cases}


def check(planted, clean):
    """What is found in the broken copy and not in the clean one is what was planted, whole."""
    broken = examined(planted.splits)
    new = places(broken) - places(clean)
    missed = [fault for fault in planted.faults if not fault <= new]
    assert not missed
    assert new == set().union(*planted.faults)
    assert without_ids(broken) - without_ids(clean) == planted.kinds
    assert len(planted.faults) >= 40


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Shapes in COCO's format, the directories of their images, and where they are."""
    out = tmp_path_factory.mktemp("shapes")
    contents, images = shapes_as_coco(out)
    splits = []
    for split, content in contents.items():
        (out / f"{split}.json").write_text(json.dumps(content))
        splits.append((split, [out / f"{split}.json", images[split]]))
    return contents, images, examined(splits)


def test_nothing_is_found_in_clean_data(shapes):
    _, _, clean = shapes
    assert [finding for finding in clean.findings if finding.severity != "note"] == []


def test_planted_faults_are_found(shapes, tmp_path):
    contents, images, clean = shapes
    check(break_copy(contents, images, tmp_path / "broken"), clean)


@pytest.mark.slow
def test_planted_faults_are_found_in_bccd(tmp_path):
    if not BCCD.is_dir():
        pytest.skip(f"there is no {BCCD}")
    names = ("train", "val", "test")
    clean = examined([(name, [BCCD / f"annotations/{name}.json", BCCD / "images"]) for name in names])
    assert {finding.kind for finding in clean.findings} == {"twice", "near_leak"}
    assert {place for place in places(clean) if place.kind == "near_leak"} == {Place("near_leak", "val", 214)}
    contents = {name: json.loads((BCCD / f"annotations/{name}.json").read_text()) for name in names}
    check(break_copy(contents, dict.fromkeys(names, BCCD / "images"), tmp_path / "broken"), clean)
