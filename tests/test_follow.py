"""A directory that grows: each file is taken once, when it is finished, also over a restart."""

import io
import json
import os
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from mgdet.errors import DataError, Interrupted
from mgdet.inference import follow as following
from mgdet.inference.follow import GIVE_UP_S, LOG, SETTLED_S, VIDEO_SETTLED_S, Version, Watch, follow
from mgdet.inference.predict import Options
from mgdet.inference.prediction import Prediction
from mgdet.structures import Category

CLASSES = (Category(3, "cat"),)
DEFAULT = Options()


def jpeg(grey: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (32, 24), (grey,) * 3).save(out, "JPEG")
    return out.getvalue()


class Finder:
    """Finds the brightness of a photo."""

    def __init__(self, trained, options):
        self.trained, self.options, self.at_once, self.max_pixels = trained, options, options.batch_size, 10**6
        trained.seen += [self]

    def __call__(self, photos):
        self.trained.photos += [photo.name for photo in photos]
        scores = [np.array([photo.pixels.float().mean().item() / 255]) for photo in photos]
        box = np.array([[1.0, 2.0, 11.0, 22.0]])
        return [Prediction(box, score, np.array([0]), CLASSES, (24, 32)) for score in scores]


@pytest.fixture
def camera(tmp_path, monkeypatch):
    """`camera(*actions)` follows, an action at each wait of two seconds; after the last it is stopped."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(following, "Finder", Finder)
    monkeypatch.setattr(following, "monotonic", lambda: clock.now)
    directory = tmp_path / "camera"
    directory.mkdir()

    def start(*actions, **options):
        trained = SimpleNamespace(path="run/best.pt", categories=CLASSES, photos=[], seen=[])
        left = list(actions)

        def wait(seconds):
            clock.now += 2.0
            if not left:
                return True
            left.pop(0)()
            return False

        with pytest.raises(Interrupted, match="The same command goes on"):
            follow(trained, str(directory), str(tmp_path / "out"), Options(**options), wait)
        return [name.removeprefix(f"{directory}/") for name in trained.photos]

    return SimpleNamespace(start=start, directory=directory, out=tmp_path / "out", clock=clock)


def put(camera, name, data, when=None):
    path = camera.directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    if when is not None:
        os.utime(path, (when, when))


def nothing():
    pass


def results(camera):
    return [json.loads((camera.out / f"{name}.json").read_text()) for name in ("images", "detections")]


# --- which files are finished


def test_a_file_is_finished_when_it_has_not_changed_for_some_seconds(tmp_path):
    watch = Watch(tmp_path, tmp_path / "out", set())
    (tmp_path / "b.jpg").write_bytes(b"1")
    assert watch.look(0) == []
    (tmp_path / "b.jpg").write_bytes(b"12")
    assert watch.look(SETTLED_S) == [], "it has grown"
    assert [v.name for v in watch.look(2 * SETTLED_S)] == ["b.jpg"]
    assert [v.size for v in watch.look(2 * SETTLED_S)] == [2]


def test_videos_are_given_more_time(tmp_path):
    pytest.importorskip("av", reason="needs the extra `video`")
    (tmp_path / "a.mp4").write_bytes(b"1")
    watch = Watch(tmp_path, tmp_path / "out", set())
    assert watch.look(0) == watch.look(VIDEO_SETTLED_S - 0.1) == []
    assert len(watch.look(VIDEO_SETTLED_S)) == 1


def test_files_come_in_the_order_of_arrival_and_others_are_passed_over(tmp_path):
    for name, when in (("b.jpg", 50), ("sub/a.png", 30), ("c.jpg", 30), (".d.jpg", 1), ("out/e.jpg", 1), ("f.txt", 1)):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"1")
        os.utime(path, (when, when))
    watch = Watch(tmp_path, tmp_path / "out", {Version("c.jpg", 1, 99)})
    watch.look(0)
    found = watch.look(9)
    assert [v.name for v in found] == ["c.jpg", "sub/a.png", "b.jpg"]
    done = Watch(tmp_path, tmp_path / "out", {found[0]})
    done.look(0)
    assert [v.name for v in done.look(9)] == ["sub/a.png", "b.jpg"]


# --- the whole


def test_each_file_is_taken_once_and_the_results_are_cocos(camera):
    put(camera, "2.jpg", jpeg(200), 20)
    put(camera, "1.jpg", jpeg(100), 10)
    seen = camera.start(nothing, nothing, lambda: put(camera, "day/3.jpg", jpeg(50)), nothing, nothing, parquet=True)
    assert seen == ["1.jpg", "2.jpg", "day/3.jpg"]
    images, detections = results(camera)
    assert [(i["id"], i["file_name"]) for i in images["images"]] == [
        (k, f"{camera.directory}/{name}") for k, name in enumerate(seen)
    ]
    assert images["categories"] == [{"id": 3, "name": "cat"}]
    assert [(d["image_id"], d["category_id"], d["bbox"]) for d in detections] == [
        (k, 3, [1, 2, 10, 20]) for k in range(3)
    ]
    assert [round(d["score"] * 255) for d in detections] == [100, 200, 50]
    assert sorted(p.name for p in camera.out.iterdir()) == [
        *("detections.json", "detections.parquet", LOG, "images.json")
    ]


def test_a_restart_takes_what_is_new_or_changed_and_nothing_twice(camera):
    put(camera, "1.jpg", jpeg(100), 10)
    assert camera.start(nothing, nothing) == ["1.jpg"]
    with (camera.out / LOG).open("ab") as file:
        file.write(b'{"file": ["2.jpg", 1')  # the process was killed while it wrote
    put(camera, "2.jpg", jpeg(60), 20)
    assert camera.start(nothing, nothing) == ["2.jpg"]
    assert camera.start(nothing, nothing) == []
    put(camera, "1.jpg", jpeg(101), 30)
    assert camera.start(nothing, nothing, batch_size=2) == ["1.jpg"]
    images, detections = results(camera)
    assert [i["id"] for i in images["images"]] == [0, 1, 2]
    assert len(detections) == 3


def test_what_is_half_written_is_waited_for_and_what_is_damaged_given_up(camera):
    whole = jpeg(90)
    put(camera, "half.jpg", whole[:200])
    put(camera, "damaged.jpg", b"no image")
    rounds = int(GIVE_UP_S / 2)
    seen = camera.start(*[nothing] * 5, lambda: put(camera, "half.jpg", whole), *[nothing] * rounds)
    assert seen == ["half.jpg"]
    lines = [json.loads(line) for line in (camera.out / LOG).read_text().splitlines()[1:]]
    assert [line["file"][0] for line in lines] == ["half.jpg", "damaged.jpg"]
    assert "not a readable image" in lines[1]["unreadable"]
    assert camera.start(nothing, nothing) == []


def test_a_stop_ends_after_the_file(camera, monkeypatch):
    for k in range(3):
        put(camera, f"{k}.jpg", jpeg(10 * k), k + 1)
    event = following.threading.Event()
    monkeypatch.setattr(following.threading, "Event", lambda: event)
    monkeypatch.setattr(
        Finder, "__call__", lambda self, photos, find=Finder.__call__: event.set() or find(self, photos)
    )
    assert camera.start(nothing, nothing) == ["0.jpg"]
    assert len(results(camera)[0]["images"]) == 1


def test_drawn_pictures_keep_their_names_apart(camera):
    put(camera, "a/1.jpg", jpeg(100), 10)
    camera.start(nothing, nothing, draw=True)
    put(camera, "b/1.jpg", jpeg(50), 20)
    camera.start(nothing, nothing, draw=True)
    assert [i["picture"] for i in results(camera)[0]["images"]] == ["1.png", "1-1.png"]
    assert all((camera.out / name).is_file() for name in ("1.png", "1-1.png"))


def test_what_is_refused(camera, tmp_path):
    trained = SimpleNamespace(path="run/best.pt", categories=CLASSES, photos=[], seen=[])
    put(camera, "1.jpg", jpeg(100), 10)
    camera.start(nothing, nothing)

    def refused(directory, out, options=DEFAULT):
        with pytest.raises(DataError) as caught:
            follow(trained, str(directory), str(out), options, lambda seconds: True)
        return str(caught.value)

    assert "begun with another score" in refused(camera.directory, camera.out, Options(score=0.5))
    trained.path = "run/other.pt"
    assert "begun with another checkpoint" in refused(camera.directory, camera.out)
    trained.path = "run/best.pt"
    assert "no local directory" in refused("s3://bucket/x", camera.out)
    assert "no local directory" in refused(tmp_path / "nowhere", camera.out)
    (tmp_path / LOG).touch()
    assert "lies in the output directory" in refused(camera.directory, tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    assert "is not empty" in refused(camera.directory, tmp_path / "full")
    text = (camera.out / LOG).read_text()
    (camera.out / LOG).write_text(text.replace('"file"', '"fill"'))
    assert "line 2: damaged" in refused(camera.directory, camera.out)
