"""`jobs/predict.py`: the detections of evaluation for files, in COCO's results format."""

import json
import os
import shutil
import signal
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mgdet.cli.main import main
from mgdet.data import ShardedDataset, build_eval_loader
from mgdet.evaluation.draw import draw_boxes
from mgdet.inference import follow as following
from mgdet.inference import predict as prediction
from mgdet.inference.evaluate import evaluate_trained
from mgdet.inference.load import load_detector
from mgdet.training.distributed import World
from mgdet.training.evaluate import evaluate
from tests.trained_runs import MODELS, call, import_job, refused, train

job = import_job("predict")
LOW = ("--score", "0.006")  # what a detector of six images dares to say


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The directories of the runs; the FCOS pads its images."""
    directory = tmp_path_factory.mktemp("predict")
    fcos = {"data__transform__resize": {"name": "longest_edge", "height": 96, "width": 80}}
    for name in MODELS:
        train(directory, name, train__epochs=1, **(fcos if name == "fcos" else {}))
    return {name: directory / "runs" / name for name in MODELS}


@pytest.fixture
def run(runs):
    return runs["retinanet"]


@pytest.fixture
def photos(run, tmp_path):
    """Three files, byte for byte those of the validation split."""
    return export(run, tmp_path / "photos")


def export(run, directory):
    dataset = ShardedDataset(load_detector(str(run)).experiment.data.uri, "val")
    directory.mkdir()
    for row in range(len(dataset)):
        (directory / f"{row}.jpg").write_bytes(dataset.read_image(row))
    return directory


def read(out):
    return json.loads((out / "detections.json").read_text()), json.loads((out / "images.json").read_text())


# --- the same detections


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "batch_size"),
    [
        ("retinanet", 1),
        ("fcos", 2),
        pytest.param("retinanet", 2, marks=pytest.mark.exhaustive),
        pytest.param("fcos", 1, marks=pytest.mark.exhaustive),
    ],
)
def test_an_image_has_the_detections_of_its_evaluation(runs, tmp_path, name, batch_size):
    photos = export(runs[name], tmp_path / "photos")
    answer = call(job, runs[name], photos, "--out", tmp_path / "out", "--score", 0, "--batch-size", batch_size)
    assert answer.status == 0, answer.err
    results, _ = read(tmp_path / "out")
    trained = load_detector(str(runs[name]))
    data = trained.experiment.data
    dataset = ShardedDataset(data.uri, "val")
    loader = build_eval_loader(dataset, data.transform, data.loader, batch_size=batch_size)
    world = World(0, 1, trained.device)
    _, evaluated = evaluate(
        trained.detector, loader, dataset.ground_truth(), trained.experiment.evaluation, world, "fp32"
    )
    assert len(results) > 10
    for row, found in enumerate(evaluated.samples.detections):
        mine = [r for r in results if r["image_id"] == row]
        x, y, w, h = np.array([r["bbox"] for r in mine]).T
        valid = found.valid[0]
        expected = found.boxes[0][valid].double().numpy()
        assert [r["score"] for r in mine] == found.scores[0][valid].tolist()
        assert [r["category_id"] for r in mine] == [dataset.categories[k].id for k in found.labels[0][valid]]
        assert np.stack([x, y, x + w, y + h], axis=1) == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
def test_boxes_are_within_the_upright_original(run, tmp_path):
    """A photo lying on its side, of another size and shape than the network's input."""
    pixels = np.random.default_rng(0).integers(0, 255, (333, 1001, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.fromarray(pixels).save(tmp_path / "turned.jpg", exif=exif)
    assert call(job, run, tmp_path / "turned.jpg", "--out", tmp_path / "out", *LOW).status == 0
    results, images = read(tmp_path / "out")
    assert [(i["width"], i["height"]) for i in images["images"]] == [(333, 1001)]
    boxes = np.array([r["bbox"] for r in results])
    assert (boxes >= 0).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= [333, 1001]).all()
    assert (boxes[:, 1] + boxes[:, 3]).max() > 600, "not in pixels of the network input"


@pytest.mark.slow
def test_an_image_alone_does_not_depend_on_the_others(runs, tmp_path):
    photos = export(runs["fcos"], tmp_path / "photos")
    Image.open(photos / "0.jpg").resize((40, 200)).save(photos / "9.jpg")
    for given, out in (([photos], "all"), ([photos / "1.jpg"], "one")):
        assert call(job, runs["fcos"], *given, "--out", tmp_path / out, *LOW).status == 0
    together = [(r["bbox"], r["score"]) for r in read(tmp_path / "all")[0] if r["file_name"].endswith("/1.jpg")]
    assert together == [(r["bbox"], r["score"]) for r in read(tmp_path / "one")[0]]


# --- the files


@pytest.mark.slow
def test_pycocotools_reads_what_is_written(run, photos, tmp_path):
    answer = call(job, run, photos, "--out", tmp_path / "out", *LOW)
    results, images = read(tmp_path / "out")
    assert answer.out.endswith(f"{len(results)} detections in 3 images; written to {tmp_path}/out\n")
    coco = COCO(str(tmp_path / "out" / "images.json"))
    found = coco.loadRes(str(tmp_path / "out" / "detections.json"))
    assert len(found.getAnnIds()) == len(results) > 0
    names = {c["id"]: c["name"] for c in images["categories"]}
    assert names == {1: "disk", 2: "square", 3: "triangle", 4: "star", 5: "ring", 6: "cross"}
    for r in results:
        assert r["category_name"] == names[r["category_id"]]
        assert r["file_name"] == images["images"][r["image_id"]]["file_name"]
        assert r["score"] >= 0.006
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["detections.json", "images.json"]


@pytest.mark.slow
def test_the_score_is_the_least_that_is_written(run, photos, tmp_path):
    call(job, run, photos, "--out", tmp_path / "all", "--score", "0")
    everything = read(tmp_path / "all")[0]
    middle = sorted(r["score"] for r in everything)[len(everything) // 2]
    call(job, run, photos, "--out", tmp_path / "some", "--score", repr(middle))
    assert read(tmp_path / "some")[0] == [r for r in everything if r["score"] >= middle]
    answer = call(job, run, photos, "--out", tmp_path / "none")
    assert (answer.status, read(tmp_path / "none")[0]) == (0, []), "0.3 by default"


@pytest.mark.slow
def test_directories_are_searched_and_each_file_is_taken_once(run, photos, tmp_path):
    (photos / "deep" / ".hidden").mkdir(parents=True)
    for name in ("deep/4.JPG", "deep/.hidden/5.jpg", "._0.jpg", "notes.txt", "unusual"):
        shutil.copy(photos / "0.jpg", photos / name)
    given = [photos / "2.jpg", photos, photos / "unusual", photos / "deep"]
    assert call(job, run, *given, "--out", photos / "out", "--draw").status == 0
    names = [i["file_name"] for i in read(photos / "out")[1]["images"]]
    expected = ["2.jpg", "0.jpg", "1.jpg", "deep/4.JPG", "unusual"]
    assert names == [str(photos / name) for name in expected]
    again = call(job, run, photos, "--out", photos / "out", "--overwrite")
    assert again.status == 0
    assert len(read(photos / "out")[1]["images"]) == 4, "the pictures of the first time are no input of the second"


@pytest.mark.slow
def test_unreadable_images_are_named_and_left_out(run, photos, tmp_path):
    (photos / "1.jpg").write_bytes((photos / "1.jpg").read_bytes()[:200])
    (photos / "3.jpg").write_text("not an image")
    answer = call(job, run, photos, "--out", tmp_path / "out", "--batch-size", 2, *LOW)
    assert answer.status == 0
    for name in ("1.jpg", "3.jpg"):
        assert f"left out: {photos / name}: not a readable image" in answer.out
    assert "in 2 images, 2 left out as unreadable (named above)" in answer.out
    results, images = read(tmp_path / "out")
    assert [(i["id"], i["file_name"]) for i in images["images"]] == [(0, f"{photos}/0.jpg"), (1, f"{photos}/2.jpg")]
    assert {r["image_id"] for r in results} == {0, 1}


@pytest.mark.slow
def test_nothing_readable(run, tmp_path):
    (tmp_path / "a.jpg").write_text("not an image")
    said = refused(call(job, run, tmp_path / "a.jpg", "--out", tmp_path / "out"))
    assert "None of the 1 images can be read; nothing was written" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_results_carry_the_ids_of_an_annotation_file(run, photos, tmp_path):
    """So that pycocotools scores them for that file as the evaluation does."""
    dataset = ShardedDataset(load_detector(str(run)).experiment.data.uri, "val")
    ids = [2, 0, 1]
    truth = {
        "info": {},
        "images": [{"id": ids[r], "file_name": f"{r}.jpg", "height": 64, "width": 64} for r in range(3)],
        "categories": [{"id": c.id, "name": c.name} for c in dataset.categories],
        "annotations": [],
    }
    for row in range(3):
        for (x1, y1, x2, y2), label in zip(*dataset.annotation(row)[:2], strict=True):
            box = [float(x1), float(y1), float(x2 - x1), float(y2 - y1)]
            number = len(truth["annotations"]) + 1
            category = dataset.categories[label].id
            thing = {"id": number, "image_id": ids[row], "category_id": category, "bbox": box, "area": box[2] * box[3]}
            truth["annotations"].append({**thing, "iscrowd": 0})
    (tmp_path / "val.json").write_text(json.dumps(truth))
    shutil.copy(photos / "0.jpg", photos / "more.jpg")
    answer = call(job, run, photos, "--out", tmp_path / "out", "--score", 0, "--ids", tmp_path / "val.json")
    assert "1 left out (not in" in answer.out
    coco = COCO(str(tmp_path / "val.json"))
    found = COCOeval(coco, coco.loadRes(str(tmp_path / "out" / "detections.json")), "bbox")
    found.evaluate()
    found.accumulate()
    found.summarize()
    expected = evaluate_trained(load_detector(str(run), ["evaluation.backend=pycocotools"])).metrics
    assert found.stats[8] == pytest.approx(expected["val/AR100"], abs=1e-6)
    assert found.stats[0] == pytest.approx(expected["val/AP"], abs=1e-6)


@pytest.mark.slow
def test_the_limit_of_pixels_can_be_given(run, photos, tmp_path):
    said = refused(call(job, run, photos, "--out", tmp_path / "out", "--max-pixels", 4000))
    assert "None of the 3 images can be read" in said


# --- pictures


@pytest.mark.slow
def test_pictures_of_equal_names_are_kept_apart(run, photos, tmp_path):
    for name in ("a", "b", "A"):
        (tmp_path / "in" / name).mkdir(parents=True)
        shutil.copy(photos / "0.jpg", tmp_path / "in" / name / "same.jpg")
    shutil.copy(photos / "0.jpg", tmp_path / "in" / "a" / "Same-1.jpg")
    assert call(job, run, tmp_path / "in", "--out", tmp_path / "out", "--draw").status == 0
    pictures = [i["picture"] for i in read(tmp_path / "out")[1]["images"]]
    assert len({p.casefold() for p in pictures}) == 4
    assert {p.name for p in (tmp_path / "out").glob("*.png")} == set(pictures)
    assert "same.png" in pictures


@pytest.mark.slow
def test_a_picture_shows_boxes_in_the_colours_of_their_classes():
    image = torch.full((3, 300, 200), 128, dtype=torch.uint8)
    boxes = [[20.0, 60.0, 120.0, 160.0], [0.0, 0.0, 200.0, 300.0], [50.0, 50.0, 50.0, 50.0]]
    picture = draw_boxes(image, boxes, [0, 9, 2], ["disk 0.90", "Größe 0.40", "point 0.30"])
    assert picture.size == (427, 640), "small images are enlarged"
    scale = 640 / 300
    assert picture.getpixel((round(70 * scale), round(160 * scale))) == (0xFF, 0xB0, 0x00)
    assert picture.getpixel((round(150 * scale), 639)) == (0x36, 0xC5, 0xF0)
    assert picture.getpixel((round(70 * scale), round(110 * scale))) == (128, 128, 128)
    assert draw_boxes(torch.zeros(3, 1000, 4000, dtype=torch.uint8), [], [], []).size == (1920, 480)


# --- what is refused


@pytest.mark.slow
def test_a_taken_directory(run, photos, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    assert "is not empty; nothing was written" in refused(call(job, run, photos, "--out", out))
    assert [p.name for p in out.iterdir()] == ["mine.txt"]
    assert call(job, run, photos, "--out", out, "--overwrite").status == 0
    assert sorted(p.name for p in out.iterdir()) == ["detections.json", "images.json", "mine.txt"]
    assert "is a file" in refused(call(job, run, photos, "--out", out / "mine.txt", "--overwrite"))
    said = refused(call(job, run, photos / "0.jpg", "--out", photos, "--overwrite"))
    assert "lies in the output directory" in said


@pytest.mark.slow
def test_an_earlier_result_outlives_a_failure(run, photos, tmp_path, monkeypatch):
    call(job, run, photos, "--out", tmp_path / "out")
    before = read(tmp_path / "out")

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(prediction, "detect", interrupt)
    assert call(job, run, photos, "--out", tmp_path / "out", "--overwrite").status == 130
    assert read(tmp_path / "out") == before
    assert call(job, run, photos, "--out", tmp_path / "new").status == 130
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["missing.jpg"], "missing.jpg: no such file or directory"),
        (["."], "No images in ."),
        ([".", "--score", "1.5"], "allowed are 0 to 1"),
        ([".", "--score", "nan"], "allowed are 0 to 1"),
        ([".", "--batch-size", "0"], "must be at least 1"),
        ([".", "--out", "s3://bucket/x"], "must be a local directory"),
        ([".", "--every", "0"], "must be at least 1"),
        ([], "Give images, videos or directories, or --follow"),
        ([".", "--follow", "."], "and not both"),
        (["--follow", ".", "--ids", "a.json"], "leave out --ids"),
        (["--follow", "nowhere"], "nowhere: no local directory"),
        ([".", "--address", "10.0.0.1:6379"], "give --workers too"),
        ([".", "--workers", "2", "--overwrite"], "leave out --follow and --overwrite"),
        ([".", "--workers", "2", "--draw"], "--draw is for one process"),
        ([".", "--workers", "2"], "No images in ."),
        (["missing.jpg", "--workers", "auto"], "missing.jpg: no such file or directory"),
        (["https://example.org/a.jpg"], "a URI with a scheme that pyarrow.fs knows"),
    ],
)
def test_wrong_input(run, tmp_path, monkeypatch, args, said):
    monkeypatch.chdir(tmp_path)
    assert said in refused(call(job, run, "--out", "out", *args))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("option", "said"),
    [
        *((f"--workers={n}", f"{n!r}: expected a number from 1 to 4096, or auto") for n in ("0", "-1", "1.5", "x", "")),
        *((f"--cpus-per-worker={n}", f"{n!r}: expected a number from 0.01") for n in ("0", "-1", "nan", "x", "inf")),
    ],
)
def test_numbers_of_processes_and_cpus_that_are_none(capsys, option, said):
    with pytest.raises(SystemExit, match="2"):
        raise SystemExit(main(["predict", "run", "a.jpg", "--out", "out", option]))
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_a_checkpoint_that_is_none(tmp_path, photos):
    (tmp_path / "notes.pt").write_text("notes")
    said = refused(call(job, tmp_path / "notes.pt", photos, "--out", tmp_path / "out"))
    assert "no checkpoint of mgdet" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_table_and_test_time_augmentation(run, photos, tmp_path):
    import pyarrow.parquet as pq

    answer = call(job, run, photos, "--out", tmp_path / "out", *LOW, "--parquet", "--tta", "flip")
    assert answer.status == 0, answer.err
    detections, _ = read(tmp_path / "out")
    rows = pq.read_table(tmp_path / "out" / "detections.parquet").to_pylist()
    assert len(rows) == len(detections) > 0
    for row, found in zip(rows, detections, strict=True):
        x, y, width, height = found["bbox"]
        assert [row[k] for k in ("x1", "y1", "x2", "y2")] == [x, y, x + width, y + height]
        assert (row["image_id"], row["category"], row["score"]) == (
            *(found["image_id"], found["category_name"], found["score"]),
        )
    assert "numbers from 0.1 to 4" in refused(call(job, run, photos, "--out", tmp_path / "b", "--tta", "mirror"))
    assert not (tmp_path / "b").exists()


@pytest.mark.slow
def test_frames_of_a_video_and_images_of_a_uri(run, photos, tmp_path):
    av = pytest.importorskip("av", reason="needs the extra `video`")
    with av.open(str(photos / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 64
        for row in range(3):
            picture = np.asarray(Image.open(photos / f"{row}.jpg").convert("RGB").resize((64, 64)))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    (photos / "broken.mp4").write_text("not a video")
    given = ("--out", tmp_path / "out", *LOW, "--draw", "--parquet", "--batch-size", 2)
    answer = call(job, run, f"file://{photos}", *given)
    assert answer.status == 0, answer.err
    assert "in 6 images, 3 of them frames of videos, 1 left out as unreadable" in answer.out
    results, images = read(tmp_path / "out")
    frames = [i for i in images["images"] if "frame" in i]
    assert [(i["frame"], i["seconds"], i["picture"]) for i in frames] == [
        (k, pytest.approx(k / 5, abs=1e-3), "clip.mp4") for k in range(3)
    ]
    assert len(
        COCO(str(tmp_path / "out" / "images.json")).loadRes(str(tmp_path / "out" / "detections.json")).anns
    ) == len(results)
    with av.open(str(tmp_path / "out" / "clip.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 3


@pytest.mark.slow
def test_following_a_directory_ends_with_the_status_of_ctrl_c(run, photos, tmp_path, monkeypatch):
    waits = []

    class Stopped(threading.Event):
        def wait(self, timeout=None):
            waits.append(timeout)
            monkeypatch.setattr(following, "SETTLED_S", -1.0)
            if len(waits) == 2:
                os.kill(os.getpid(), signal.SIGINT)
            return self.is_set()

    monkeypatch.setattr(following, "threading", SimpleNamespace(Event=Stopped))  # only there: a lease waits too
    answer = call(job, run, "--follow", photos, "--out", tmp_path / "out", *LOW)
    assert answer.status == 130
    assert "3 images, 0 files that cannot be read; written to" in answer.err
    assert len(read(tmp_path / "out")[1]["images"]) == 3
