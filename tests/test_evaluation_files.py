"""What `mgdet evaluate --out` writes is what other tools read, and gives their numbers."""

import csv
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mgdet.comparison.judged import read_judged
from mgdet.data import ShardedDataset
from mgdet.data.pictures import Pictures
from mgdet.evaluation.average_precision import DetectionArrays
from mgdet.evaluation.coco import coco_ap
from mgdet.evaluation.error_types import ERROR_TYPES, NEAR_IOU, error_costs, error_rankings, error_types
from mgdet.evaluation.matching import coco_matches, overlaps
from mgdet.ground_truth import GroundTruth
from mgdet.inference.results import ResultFiles
from tests.reference import judging as oracle
from tests.trained_runs import call, import_job, refused, train

job = import_job("evaluate")
FILES = [
    "analysis.json",
    "annotations.json",
    "classes.csv",
    "detections.json",
    "detections.parquet",
    "metrics.json",
    "precision_recall.csv",
    "report.html",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("files")
    train(directory, "retinanet", train__epochs=1)
    return directory / "runs" / "retinanet"


@pytest.fixture(scope="module")
def written(run, tmp_path_factory):
    """The directory of an evaluation, and its metrics."""
    out = tmp_path_factory.mktemp("out") / "deep" / "judged"
    answer = call(job, run, "evaluation.backend=pycocotools", "--out", out, "--json", out.parent / "x.json")
    assert answer.status == 0, answer.err
    assert sorted(os.listdir(out)) == FILES
    assert (out / "metrics.json").read_text() == (out.parent / "x.json").read_text()
    return out


@pytest.fixture
def dataset(run):
    return ShardedDataset(str(run.parents[1] / "shapes"), "val")


def judged(out, capsys):
    """The twelve numbers of pycocotools."""
    truth = COCO(str(out / "annotations.json"))
    judge = COCOeval(truth, truth.loadRes(str(out / "detections.json")), "bbox")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    return judge.stats


@pytest.mark.slow
def test_pycocotools_finds_the_same_numbers(written, capsys):
    metrics = json.loads((written / "metrics.json").read_text())["metrics"]
    stats = judged(written, capsys)
    for name, value in zip(("AP", "AP50", "AP75", "APs", "APm", "APl"), stats, strict=False):
        assert metrics.get(f"val/{name}", -1) == pytest.approx(value, abs=1e-9)


@pytest.mark.slow
def test_the_table_has_each_detection(written, dataset):
    results = json.loads((written / "detections.json").read_text())
    rows = pq.read_table(written / "detections.parquet").to_pylist()
    assert len(rows) == len(results) > 0
    files = {int(i): dataset.file_name(k) for k, i in enumerate(dataset.ground_truth().image_ids)}
    names = {category.id: category.name for category in dataset.categories}
    for row, result in zip(rows, results, strict=True):
        x, y, w, h = result["bbox"]
        assert [row["x1"], row["y1"], row["x2"], row["y2"]] == pytest.approx([x, y, x + w, y + h], abs=1e-4)
        assert (row["image_id"], row["category_id"]) == (result["image_id"], result["category_id"])
        assert row["score"] == result["score"]
        assert (row["file_name"], row["category"]) == (files[row["image_id"]], names[row["category_id"]])


@pytest.mark.exhaustive
def test_fiftyone_reads_both(written, dataset):
    """Its own loaders of objects and of predictions, where `MGDET_FIFTYONE` is a Python that has it."""
    python = os.environ.get("MGDET_FIFTYONE")
    if not python:
        pytest.skip("MGDET_FIFTYONE names no Python with FiftyOne")
    script = Path(__file__).with_name("outside_fiftyone.py")
    files = [written / "annotations.json", written / "detections.json"]
    done = subprocess.run([python, script, *files], cwd=written, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    theirs = json.loads(done.stdout.splitlines()[-1])
    names = {category.id: category.name for category in dataset.categories}
    truth = dataset.ground_truth()
    sizes = {int(i): (truth.widths[k], truth.heights[k]) for k, i in enumerate(truth.image_ids)}
    for key, file, with_score in (("truth", files[0], False), ("found", files[1], True)):
        read = json.loads(file.read_text())
        expected: dict[str, list[list[object]]] = {}
        for each in read["annotations"] if isinstance(read, dict) else read:
            width, height = sizes[each["image_id"]]
            x, y, w, h = each["bbox"]
            score = [each["score"]] if with_score else []
            box = [x / width, y / height, w / width, h / height]
            expected.setdefault(str(each["image_id"]), []).append([names[each["category_id"]], *score, *box])
        assert len(expected) > 1
        assert theirs[key].keys() == expected.keys()
        for image, rows in expected.items():
            assert [row[0] for row in theirs[key][image]] == [row[0] for row in rows]
            np.testing.assert_allclose([r[1:] for r in theirs[key][image]], [r[1:] for r in rows], atol=1e-9)


@pytest.mark.slow
def test_supervision_reads_both(written, dataset, tmp_path):
    """Its loader of COCO's annotations gives the objects, and the rows of the table become its detections."""
    supervision = pytest.importorskip("supervision", reason="in the development dependencies")
    for row in range(len(dataset)):
        path = tmp_path / dataset.file_name(row)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(dataset.read_image(row))
    theirs = supervision.DetectionDataset.from_coco(str(tmp_path), str(written / "annotations.json"))
    assert theirs.classes == [category.name for category in dataset.categories]
    truth = dataset.ground_truth()
    table = pq.read_table(written / "detections.parquet").to_pandas()
    for row in range(len(dataset)):
        mine = truth.boxes[truth.box_image == row]
        found = theirs.annotations[str(tmp_path / dataset.file_name(row))]
        assert len(found) == len(mine)
        np.testing.assert_allclose(found.xyxy, mine, atol=1e-3)
        rows = table[table["image_id"] == truth.image_ids[row]]
        detections = supervision.Detections(
            rows[["x1", "y1", "x2", "y2"]].to_numpy(), confidence=rows["score"].to_numpy()
        )
        assert len(detections) == len(rows)


@pytest.mark.slow
def test_fiftyone_reads_them(written, dataset, tmp_path):
    """Where it is installed: it starts a database of its own, and is no development dependency for that reason."""
    coco = pytest.importorskip("fiftyone.utils.coco", reason="FiftyOne is not installed")
    import fiftyone

    loaded = fiftyone.Dataset()
    for row in range(len(dataset)):
        path = tmp_path / dataset.file_name(row)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(dataset.read_image(row))
        loaded.add_sample(fiftyone.Sample(filepath=str(path), coco_id=int(dataset.image_ids[row])))
    ids = {category.id: category.name for category in dataset.categories}
    coco.add_coco_labels(
        loaded, "found", str(written / "detections.json"), ids, label_type="detections", coco_id_field="coco_id"
    )
    results = json.loads((written / "detections.json").read_text())
    assert loaded.count("found.detections") == len(results)


@pytest.mark.slow
def test_errors_of_a_trained_detector_cost_what_the_loop_says(written):
    """From the files, so that what was written is what was analysed; one object in eight is made a crowd."""
    judged = read_judged(str(written))
    for crowd in (False, True):
        iscrowd = np.arange(len(judged.gt.labels)) % 8 == 0 if crowd else judged.gt.iscrowd
        gt = GroundTruth(**{**vars(judged.gt), "iscrowd": iscrowd})
        near = overlaps(gt, judged.det, NEAR_IOU, same_class=False)
        types = error_types(gt, judged.det, near, coco_matches(gt, judged.det))
        found = error_costs(error_rankings(gt, judged.det, types), np.ones((1, len(gt.image_ids))))
        base, expected = oracle.error_costs(gt, judged.det)
        assert found.ap[0] == pytest.approx(base, abs=1e-12)
        assert dict(zip(ERROR_TYPES, found.rise[0], strict=True)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.slow
def test_the_report_and_the_analysis(written, dataset):
    report = (written / "report.html").read_text()
    assert "<h2>Errors</h2>" in report
    assert "://" not in report, "it needs no network"
    found = json.loads((written / "analysis.json").read_text())
    objects = int((~dataset.ground_truth().iscrowd).sum())
    for title in ("size", "crowdedness", "positives of classification", "positives of localization"):
        assert sum(group["objects"] for group in found["groups"][title]) == objects
    assert set(found["errors"]) == {"class", "location", "both", "duplicate", "background", "missed"}


@pytest.mark.slow
def test_another_split_and_data_set_that_cannot_be_written(run, tmp_path):
    (tmp_path / "taken").write_text("")
    text = refused(call(job, run, "--out", tmp_path / "taken"))
    assert "cannot be written" in text
    assert not (tmp_path / "taken").is_dir()


def made_up(dataset):
    """Detections that are right, doubled, wrong, and of one class only."""
    truth = dataset.ground_truth()
    first = truth.labels == truth.labels[0]
    boxes = np.concatenate([truth.boxes[first], truth.boxes[first], truth.boxes[first] + 500])
    image = np.tile(truth.box_image[first], 3)
    scores = np.repeat([0.9, 0.5, 0.4], first.sum())
    return DetectionArrays(image, boxes, scores, np.full(len(image), truth.labels[0]))


@pytest.mark.slow
def test_tables_by_class(dataset, tmp_path):
    det, truth = made_up(dataset), dataset.ground_truth()
    files = ResultFiles.below(str(tmp_path / "out"))
    files.write({"a": 1}, coco_ap(truth, det), Pictures(dataset))
    rows = list(csv.DictReader((tmp_path / "out" / "classes.csv").open()))
    assert [row["class"] for row in rows] == [category.name for category in dataset.categories]
    for label, row in enumerate(rows):
        objects = int((truth.labels == label).sum())
        assert (int(row["objects"]), int(row["id"])) == (objects, dataset.categories[label].id)
        if label == truth.labels[0]:
            numbers = [float(row[name]) for name in ("AP", "AP50", "AP75", "F1", "score", "precision", "recall")]
            assert numbers == pytest.approx([1, 1, 1, 1, 0.9, 1, 1])
            assert int(row["detections"]) == 3 * objects
        else:
            assert (row["detections"], row["F1"], row["score"]) == ("0", "", "")
            assert row["AP"] == ("0.0" if objects else "")
    curves = list(csv.DictReader((tmp_path / "out" / "precision_recall.csv").open()))
    of_class = [row for row in curves if row["class"] == dataset.categories[truth.labels[0]].name]
    assert len(of_class) == 2 * 101
    assert {row["precision"] for row in of_class} == {"1.0"}
    assert [row["recall"] for row in of_class[:3]] == ["0.00", "0.01", "0.02"]


@pytest.mark.slow
def test_nothing_detected(dataset, tmp_path, capsys):
    files = ResultFiles.below(str(tmp_path / "out"))
    files.write({}, coco_ap(dataset.ground_truth(), DetectionArrays.empty()), Pictures(dataset))
    assert json.loads((tmp_path / "out" / "detections.json").read_text()) == []
    assert pq.read_table(tmp_path / "out" / "detections.parquet").num_rows == 0
    assert sorted(os.listdir(tmp_path / "out")) == FILES
