"""Predictions and evaluations in portions, whoever does them: `tests/cluster/test_fleet.py` does them on Ray."""

import io
import json
import os
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from mgdet.data import ShardedDataset
from mgdet.errors import DataError, Interrupted
from mgdet.inference import evaluate_shared, predict_shared
from mgdet.inference.evaluate import evaluate_trained
from mgdet.inference.evaluate_shared import JudgingPlan
from mgdet.inference.find import Images
from mgdet.inference.load import load_detector, read_detector
from mgdet.inference.predict import Options, damaged, predict
from mgdet.inference.predict_shared import PredictionPlan, portions_of
from mgdet.inference.results import ResultFiles
from mgdet.inference.table import rows
from mgdet.storage import locate
from tests.trained_runs import train

LOW = Options(score=0.006, parquet=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("portions")
    train(directory, "retinanet", train__epochs=1)
    return str(directory / "runs" / "retinanet")


@pytest.fixture
def photos(run, tmp_path, monkeypatch):
    """Six images, of which two are a portion; one is damaged."""
    monkeypatch.setattr(predict_shared, "SIZE", 2)
    data = load_detector(run).experiment.data.uri
    directory = tmp_path / "photos"
    directory.mkdir()
    for split in ("train", "val"):
        dataset = ShardedDataset(data, split)
        for row in range(3):
            (directory / f"{split}-{row}.jpg").write_bytes(dataset.read_image(row))
    (directory / "train-1.jpg").write_bytes(b"not an image")
    return directory


def here(work, wanted, order=lambda wanted: wanted):
    """Do portions in this process, with the work as another process would get it."""
    work = pickle.loads(pickle.dumps(work))
    work.begin(torch.device("cpu"))
    for portion in order(wanted):
        yield work(portion)


def written(out):
    table = pq.read_table(out / "detections.parquet")
    return (out / "detections.json").read_bytes(), (out / "images.json").read_bytes(), table


def plan(run, inputs, out, options=LOW, **given):
    return PredictionPlan(read_detector(run), [str(path) for path in inputs], str(out), options=options, **given)


# --- which files are a portion


def test_portions_have_whole_batches_and_what_holds_many_pictures_is_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(predict_shared, "SIZE", 5)
    names = ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg", "f.mp4", "g.parquet", "h.jpg", "i.PARQUET"]
    files = Images(tuple(tmp_path / name for name in names), tuple(range(10, 19)))
    found = portions_of(files, 2)
    assert [[os.path.basename(address) for address, _, _ in p.content] for p in found] == [
        ["a.jpg", "b.jpg", "c.jpg", "d.jpg"],
        ["e.jpg"],
        ["f.mp4"],
        ["g.parquet"],
        ["h.jpg"],
        ["i.PARQUET"],
    ]
    assert [p.number for p in found] == [0, 1, 2, 3, 4, 5]
    assert [number for p in found for _, _, number in p.content] == list(range(10, 19))
    assert [p.images for p in portions_of(files._replace(ids=None), 7)] == [5, 1, 1, 1, 1]


# --- the results


@pytest.mark.slow
def test_the_results_are_those_of_one_process(run, photos, tmp_path):
    expected = predict(load_detector(run), [str(photos)], str(tmp_path / "one"), options=LOW)
    done = plan(run, [photos], tmp_path / "two").run(lambda work, wanted: here(work, wanted, reversed))
    assert done == expected
    assert done.unreadable == (f"{photos}/train-1.jpg",)
    one, two = written(tmp_path / "one"), written(tmp_path / "two")
    assert one == two
    assert sorted(os.listdir(tmp_path / "two")) == ["detections.json", "detections.parquet", "images.json"]
    with pytest.raises(DataError, match="is not empty; nothing was written"):
        plan(run, [photos], tmp_path / "two")


@pytest.mark.slow
def test_ids_of_an_annotation_file(run, photos, tmp_path):
    listed = [{"id": 90 - k, "file_name": f.name} for k, f in enumerate(sorted(photos.iterdir()))]
    ids = tmp_path / "ids.json"
    ids.write_text(json.dumps({"images": listed, "annotations": [], "categories": []}))
    predict(load_detector(run), [str(photos)], str(tmp_path / "one"), ids=str(ids), options=LOW)
    plan(run, [photos], tmp_path / "two", ids=str(ids)).run(here)
    assert written(tmp_path / "one") == written(tmp_path / "two")


# --- stops


@pytest.mark.slow
def test_it_goes_on_after_any_end(run, photos, tmp_path):
    """A process that is killed, a request to stop, a file that is damaged, then to its end."""
    whole = plan(run, [photos], tmp_path / "whole", options=LOW._replace(parquet=False))
    whole.run(here)
    out, done = tmp_path / "out", []

    def some(work, wanted):
        for each in here(work, wanted[:1]):
            done.append(wanted[0].number)
            yield each
            raise RuntimeError("killed")

    def stopped(work, wanted):
        for portion, each in zip(wanted, here(work, wanted), strict=True):
            done.append(portion.number)
            os.kill(os.getpid(), 2)
            yield each

    small = LOW._replace(parquet=False)
    with pytest.raises(RuntimeError):
        plan(run, [photos], out, small).run(some)
    with pytest.raises(Interrupted, match="4 of 6 images are predicted; the same command goes on"):
        plan(run, [photos], out, small).run(stopped)
    assert done == [0, 1]
    assert sorted(os.listdir(out)) == ["portions"]
    file = out / "portions" / "000001.portion"
    file.write_bytes(file.read_bytes().replace(b"score", b"shore", 1))
    with pytest.raises(DataError, match=r"000001.portion is damaged. Delete it"):
        plan(run, [photos], out, small).run(here)
    file.unlink()
    plan(run, [photos], out, small).run(here)
    for name in ("detections.json", "images.json"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
def test_other_work_is_refused(run, photos, tmp_path):
    out = tmp_path / "out"

    def none(work, wanted):
        yield from ()
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        plan(run, [photos], out).run(none)
    with pytest.raises(DataError, match="with other work, which differs in score, and can only be continued"):
        plan(run, [photos], out, LOW._replace(score=0.5)).run(here)
    read = read_detector(run)
    name = min(read.state["ema"]["weights"])
    read.state["ema"]["weights"][name] += 1  # as if the path were that of another training by now
    with pytest.raises(DataError, match="begun with other work, which differs in weights"):
        PredictionPlan(read, [str(photos)], str(out), options=LOW).run(here)
    (photos / "val-0.jpg").unlink()
    with pytest.raises(DataError, match="begun with other work, which differs in inputs"):
        plan(run, [photos], out).run(here)


@pytest.mark.slow
def test_what_is_refused_before_anything_is_written(run, photos, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").touch()
    for out, options, said in [
        ("mine", LOW, "is not empty"),
        ("mine/notes", LOW, "is a file"),
        ("out", LOW._replace(draw=True), "--draw is for one process"),
        ("out", LOW._replace(batch_size=0), "must be at least 1"),
        ("photos", LOW, "is not empty"),
    ]:
        with pytest.raises(DataError, match=said):
            plan(run, [photos], tmp_path / out, options)
    assert not (tmp_path / "out").exists()
    for file in photos.iterdir():
        file.write_text("not an image")
    with pytest.raises(DataError, match="None of the 6 images can be read"):
        plan(run, [photos], tmp_path / "out").run(here)
    assert os.listdir(tmp_path / "out") == []


@pytest.mark.slow
def test_a_file_that_a_process_does_not_see_is_no_unreadable_one(run, photos, tmp_path):
    wanted = plan(run, [photos], tmp_path / "out")
    (photos / "val-1.jpg").unlink()
    with pytest.raises(DataError, match=r"val-1.jpg was listed, and is not there on .*All nodes must see the images"):
        wanted.run(here)


# --- evaluations


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2, 64])
def test_the_numbers_and_files_are_those_of_one_evaluation(run, tmp_path, monkeypatch, size):
    """Also of a training whose two workers had shards of their own."""
    monkeypatch.setattr(evaluate_shared, "SIZE", size)
    shared_by_two = load_detector(run)._replace(shards=2, batch_size=2)
    monkeypatch.setattr(evaluate_shared, "build_detector", lambda *args: shared_by_two)
    one, two = tmp_path / "one", tmp_path / "two"
    expected = evaluate_trained(shared_by_two, split="train", files=ResultFiles.below(str(one)))

    plan = JudgingPlan(read_detector(run), (), None, "train", str(two))
    assert plan.run(lambda work, wanted: here(work, wanted, reversed)) == expected
    assert len(plan.portions) == {1: 4, 2: 4, 64: 1}[size]
    assert sorted(os.listdir(one)) == sorted(os.listdir(two))
    for name in ("detections.json", "annotations.json", "classes.csv", "analysis.json", "metrics.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


@pytest.mark.slow
def test_an_evaluation_goes_on_and_another_one_does_not(run, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate_shared, "SIZE", 1)
    read, out = read_detector(run), str(tmp_path / "out")

    def killed(work, wanted):
        yield from here(work, wanted[:1])
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        JudgingPlan(read, ["train.batch_size=1"], None, "val", out).run(killed)
    with pytest.raises(DataError, match="begun with other work, which differs in overrides"):
        JudgingPlan(read, ["train.batch_size=1", "model.postprocess.nms_iou=0.6"], None, "val", out).run(here)
    with pytest.raises(DataError, match="begun with other work, which differs in split, data"):
        JudgingPlan(read, ["train.batch_size=1"], None, "train", out).run(here)
    done = []

    def counted(work, wanted):
        done.append([portion.number for portion in wanted])
        yield from here(work, wanted)

    found = JudgingPlan(read, ["train.batch_size=1"], None, "val", out).run(counted)
    assert done == [[1, 2]]
    assert found == evaluate_trained(load_detector(run, ["train.batch_size=1"]))


# --- tables of images


def jpeg(colour):
    file = io.BytesIO()
    Image.fromarray(np.full((20, 30, 3), colour, dtype=np.uint8)).save(file, "jpeg")
    return file.getvalue()


def table(path, **columns):
    pq.write_table(pa.table(columns), path)
    return path


def test_rows_of_each_kind_of_table(tmp_path):
    pictures = [jpeg(colour) for colour in range(3)]
    plain = table(tmp_path / "a.parquet", image=pictures, file_name=["x", None, "z"], other=[1, 2, 3])
    assert [(r.number, r.name, r.data) for r in rows(plain)] == [
        (0, "x", pictures[0]),
        (1, None, pictures[1]),
        (2, "z", pictures[2]),
    ]
    nested = [{"bytes": pictures[0], "path": "p.jpg"}, {"bytes": None, "path": None}, None]
    hugging_face = table(tmp_path / "b.parquet", image=nested)
    assert [(r.name, r.data) for r in rows(locate(str(hugging_face)))] == [
        ("p.jpg", pictures[0]),
        (None, None),
        (None, None),
    ]
    many = table(tmp_path / "c.parquet", image=pa.array([b"1"] * 150, pa.large_binary()))
    assert [r.number for r in rows(many)] == list(range(150))


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"picture": [b"1"]}, "without a column 'image' .it has 'picture'."),
        ({"image": ["a.jpg"]}, "its column 'image' has the type string"),
        ({"image": [{"path": "a.jpg"}]}, "its column 'image' has the type struct"),
        ({"image": [3]}, "has the type int64"),
    ],
)
def test_tables_of_other_things(tmp_path, columns, said):
    with pytest.raises(DataError, match=said):
        list(rows(table(tmp_path / "a.parquet", **columns)))


@pytest.mark.parametrize("damage", [lambda d: b"", lambda d: b"PAR1", lambda d: d[:-9], lambda d: d[:200] + d[300:]])
def test_a_damaged_table(tmp_path, damage):
    path = table(tmp_path / "a.parquet", image=[jpeg(colour) for colour in range(9)])
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"a\.parquet"):
        list(rows(path))


@pytest.mark.slow
def test_detections_in_a_prepared_data_set(run, tmp_path):
    """Those in its images as files; a row that is no image is named and left out."""
    uri = load_detector(run).experiment.data.uri
    dataset = ShardedDataset(uri, "val")
    files = tmp_path / "files"
    files.mkdir()
    for row in range(3):
        (files / f"{row}.jpg").write_bytes(dataset.read_image(row))
    predict(load_detector(run), [str(files)], str(tmp_path / "one"), options=LOW)
    done = predict(load_detector(run), [f"{uri}/val"], str(tmp_path / "two"), options=LOW._replace(draw=True))
    assert done.images == 3
    found = [json.loads((tmp_path / out / "detections.json").read_text()) for out in ("one", "two")]
    assert [(r["image_id"], r["bbox"], r["score"]) for r in found[0]] == [
        (r["image_id"], r["bbox"], r["score"]) for r in found[1]
    ]
    images = json.loads((tmp_path / "two" / "images.json").read_text())["images"]
    assert [(i["row"], i["row_name"]) for i in images] == [(row, dataset.file_name(row)) for row in range(3)]
    assert images[1]["file_name"] == f"{uri}/val/part-00000.parquet#000001"
    assert images[1]["picture"] == "part-00000-000001.png"
    assert (tmp_path / "two" / "part-00000-000001.png").is_file()
    mixed = table(tmp_path / "mixed.parquet", image=[dataset.read_image(0), b"no image", None])
    done = predict(load_detector(run), [str(mixed)], str(tmp_path / "three"), options=LOW)
    assert (done.images, done.passed_over) == (1, (damaged(1),))
