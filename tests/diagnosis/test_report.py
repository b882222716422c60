"""A prepared data set with faults, and what is written of an examination: text, JSON, the page, the exit status."""

import json
import re
from pathlib import Path

import pytest

import mgdet
from mgdet.cli import main
from mgdet.data import ShapesConfig, generate_shapes
from mgdet.diagnosis.base import Case, Finding
from mgdet.diagnosis.examine import examine_dataset
from mgdet.diagnosis.kinds import KINDS, SEVERITIES
from mgdet.diagnosis.page import page
from mgdet.diagnosis.report import as_json, lines
from mgdet.errors import ConfigError, DataError
from tests.data.damages import change_manifest, shard_of, spoil

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Shapes, of which the fifth training image is spoilt, and the split val altogether."""
    root = tmp_path_factory.mktemp("prepared") / "<shapes>"
    generate_shapes(root, ShapesConfig(train=5, val=2, size=64, negatives=0))
    spoil(root, "train", [4])
    shard_of(root, "val").write_bytes(b"")
    dropped = {"split": "val", "image": "b.jpg", "image_id": 6, "annotation": 77, "reason": "has no area"}
    change_manifest(root, lambda content: content["changes"].update(dropped_boxes=[dropped]))
    return root


@pytest.fixture(scope="module")
def examined(root):
    return examine_dataset(root, workers=1)


def found(examined):
    return {finding.kind: finding for finding in examined.findings}


def test_faults_of_a_prepared_data_set(examined):
    kinds = found(examined)
    assert [(case.split, case.image_id) for case in kinds["unreadable"].cases] == [("train", 5)]
    assert "val/part-00000.parquet" in kinds["unusable"].text
    assert [(case.image_id, case.annotation) for case in kinds["left_out"].cases] == [(6, 77)]
    assert list(examined.data.splits) == ["train"]
    assert examined.data.splits["train"].truth.image_ids.tolist() == [1, 2, 3, 4]  # the others are looked at
    levels = [SEVERITIES.index(finding.severity) for finding in examined.findings]
    assert levels == sorted(levels)


def test_the_text_names_a_few_cases_and_counts_the_others(examined):
    text = "\n".join(lines(examined))
    assert (
        "error: 1 image file cannot be decoded: replace it [unreadable]\n    train, image 5 (train/000004.jpg)" in text
    )
    many = Finding("tiny", tuple(Case("train", k, f"{k}.jpg", annotation=k) for k in range(9)), "4")
    shown = "\n".join(lines(type(examined)(examined.data, (many,), 1.0)))
    assert "train, image 2 (2.jpg), annotation 2\n    and 6 more" in shown
    assert "image 3" not in shown
    assert shown.endswith(f"0 errors, 0 warnings, 1 note in {examined.data.place}, after 1 s")


def test_the_json_file_has_every_case(examined):
    values = json.loads(json.dumps(as_json(examined)))
    assert {f["kind"]: len(f["cases"]) for f in values["findings"]} == {
        kind: len(finding.cases) for kind, finding in found(examined).items()
    }
    assert values["splits"]["train"]["images"] == 4


def test_the_page_needs_nothing_else_and_shows_pictures(examined):
    split = examined.data.splits["train"]
    copy = split.case(1)._replace(twin=("train", 2))
    shown = Finding("tiny", (split.case(0, 0, "<b>"), copy, Case("train", 9, "gone.jpg", detail="no picture")), "4")
    text = page(type(examined)(examined.data, (*examined.findings, shown), 1.0))
    assert not re.findall(r"(?:src|href)=\"(?!data:)", text)
    assert "url(" not in text
    assert "<b>" not in text
    assert text.count('<img alt="" src="data:image/jpeg;base64,/9j/') == 3
    assert 'name="viewport"' in text
    assert all(str(case.image_id) in text for finding in examined.findings for case in finding.cases)


def test_the_command(root, tmp_path, capsys):
    target = tmp_path / "found.json"
    assert main.main(["doctor", str(root), "-q", "--json", str(target), "--html", str(tmp_path / "p.html")]) == 0
    assert "[unreadable]" in capsys.readouterr().out
    assert json.loads(target.read_text())["findings"][0]["severity"] == "error"
    assert (tmp_path / "p.html").read_text().startswith("<!doctype html>")
    assert main.main(["doctor", str(root), "-q", "--strict"]) == 1
    assert main.main(["doctor", str(tmp_path / "none"), "-q"]) == 2
    assert main.main(["doctor", str(root), "--split", "train", "a.json", "images"]) == 2
    assert "--split goes with a format" in capsys.readouterr().err


def test_from_python(root, tmp_path):
    diagnosis = mgdet.doctor(root, workers=1)
    assert "unreadable" in {finding.kind for finding in diagnosis.findings}
    assert "[unreadable]" in str(diagnosis)
    assert diagnosis.values["format"] == 1
    with pytest.raises(ConfigError, match="no option 'skip_bad_images'"):
        mgdet.doctor(root, skip_bad_images=True)
    with pytest.raises(DataError, match="expected 2 in a list"):
        mgdet.doctor("coco", splits={"train": ["only.json"]})
    missing = mgdet.doctor("coco", splits={"train": [tmp_path / "none.json", tmp_path]})
    assert [finding.kind for finding in missing.findings] == ["unusable"]


def test_every_kind_is_documented_with_its_level():
    rows = re.findall(r"^\| `(\w+)` \| (error|warning|note) \|", (ROOT / "docs" / "doctor.md").read_text(), re.M)
    assert dict(rows) == {name: kind.severity for name, kind in KINDS.items()}
    assert len(rows) == len(KINDS)


def test_one_thing_is_told_in_the_singular():
    things = "pictures|images|boxes|files|entries|objects|names|detections|areas|annotations"
    plural = re.compile(rf"1 (\w+ )?({things})\b|\b(their|them|they)\b")
    counted = [name for name, kind in KINDS.items() if kind.sentence.startswith("{n}")]
    for name in counted:
        one, two = (Finding(name, cases=(Case("train", None, ""),) * n, what="0.5").text for n in (1, 2))
        assert not plural.search(one), one
        assert two == KINDS[name].sentence.format(n=2, what="0.5")
    assert len(counted) > 30
