"""Frames of videos: all of them, in order, upright; and what is said of damaged ones."""

from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from mgdet.errors import DataError
from mgdet.inference import video
from mgdet.inference.find import find_images
from mgdet.inference.photos import Reader, groups
from mgdet.inference.video import DrawnVideo, Video
from mgdet.storage import locate

av = pytest.importorskip("av", reason="needs the extra `video`")
MOST = 10**6


def write(path, frames=12, format="mp4", size=(64, 48), rate=5):
    """A video whose frame `i` is grey of 20 times `i`, up to 240, with a key frame each fourth."""
    with av.open(str(path), "w", format=format) as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = *size, "yuv420p", 4
        for i in range(frames):
            pixels = np.full((size[1], size[0], 3), 20 * i % 240, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(("format", "suffix"), [("mp4", ".mp4"), ("matroska", ".mkv"), ("avi", ".avi")])
@pytest.mark.parametrize("every", [1, 5])
def test_every_frame_comes_once_with_its_number_and_time(tmp_path, format, suffix, every):
    file = write(tmp_path / f"a{suffix}", format=format)
    read = Video(file, every, MOST)
    found = list(read)
    assert [frame.number for frame in found] == list(range(0, 12, every))
    assert [frame.seconds for frame in found] == pytest.approx([n / 5 for n in range(0, 12, every)], abs=2e-3)
    for frame in found:
        assert frame.pixels.shape == (3, 48, 64)
        assert float(frame.pixels.float().mean()) == pytest.approx(20 * frame.number, abs=4)
    assert read.rate == Fraction(5, every)
    assert read.flaws == []


def test_a_video_of_a_store_is_read_as_a_local_one(tmp_path):
    place = locate(str(write(tmp_path / "a.mp4")))
    assert [frame.number for frame in Video(place, 4, MOST)] == [0, 4, 8]


def test_a_video_that_ends_early_gives_what_it_has_and_says_so(tmp_path):
    data = write(tmp_path / "a.mkv", frames=40, format="matroska").read_bytes()
    (tmp_path / "b.mkv").write_bytes(data[: len(data) // 2])
    read = Video(tmp_path / "b.mkv", 1, MOST)
    found = list(read)
    assert 5 < len(found) < 35
    assert len(read.flaws) == 1
    assert "of 8.0 s" in read.flaws[0]


def test_damaged_frames_are_counted(tmp_path):
    data = bytearray(write(tmp_path / "a.mp4", frames=40, size=(320, 240)).read_bytes())
    middle = data.index(b"mdat") + 3000
    data[middle : middle + 400] = bytes(400)
    (tmp_path / "b.mp4").write_bytes(data)
    read = Video(tmp_path / "b.mp4", 1, MOST)
    assert len(list(read)) < 40 or not read.flaws


@pytest.mark.parametrize(
    ("content", "said"), [(b"", "not a readable video"), (b"no video", "not a readable video"), (None, "No such file")]
)
def test_what_is_no_video(tmp_path, content, said):
    if content is not None:
        (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        list(Video(tmp_path / "a.mp4", 1, MOST))
    assert "a.mp4" in str(caught.value)


def test_sound_alone_is_no_video(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(DataError, match="there is no picture in it"):
        list(Video(tmp_path / "a.mp4", 1, MOST))


def test_too_many_pixels_and_no_library(tmp_path, monkeypatch):
    file = write(tmp_path / "a.mp4")
    with pytest.raises(DataError, match="64 x 48 pixels, at most 3,000 are allowed; raise --max-pixels"):
        list(Video(file, 1, 3000))
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    assert [p.name for p in find_images([str(tmp_path)], tmp_path / "out").paths] == ["a.mp4", "b.png"]
    monkeypatch.setattr(video, "available", lambda: False)
    with pytest.raises(DataError, match=r"pip install 'mgdet\[video\]'"):
        Video(file, 1, MOST)
    found = find_images([str(tmp_path)], tmp_path / "out")
    assert [p.name for p in found.paths] == ["b.png"]
    assert "1 left out (videos need the package av" in found.passed_over[0]


def test_images_and_frames_are_numbered_together(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    write(tmp_path / "b.mp4", frames=3)
    (tmp_path / "c.mp4").write_bytes(b"none")
    Image.new("RGB", (9, 8)).save(tmp_path / "d.png")
    reader = Reader(MOST, every=2)
    photos = [photo for name in ["a.png", "b.mp4", "c.mp4", "d.png"] for photo in reader.read(tmp_path / name)]
    assert [photo.id for photo in photos] == [0, 1, 2, 3]
    names = [photo.name.removeprefix(f"{tmp_path}/") for photo in photos]
    assert names == ["a.png", "b.mp4#000000", "b.mp4#000002", "d.png"]
    assert photos[2].described() == {
        "id": 2,
        "file_name": f"{tmp_path}/b.mp4#000002",
        "width": 64,
        "height": 48,
        "video": f"{tmp_path}/b.mp4",
        "frame": 2,
        "seconds": 0.4,
    }
    assert reader.unreadable == [f"{tmp_path}/c.mp4"]
    assert [len(group) for group in groups(photos, 3)] == [3, 1]


def test_a_drawn_video_has_every_picture_and_is_never_half(tmp_path):
    drawn = DrawnVideo(tmp_path / "a.mp4", Fraction(5))
    for grey in (0, 100, 200):
        drawn.add(Image.new("RGB", (65, 47), (grey,) * 3))
    assert not (tmp_path / "a.mp4").exists()
    drawn.close()
    found = list(Video(tmp_path / "a.mp4", 1, MOST))
    assert [tuple(frame.pixels.shape) for frame in found] == [(3, 48, 66)] * 3, "sizes are made even"
    assert [float(f.pixels.float().mean()) for f in found] == pytest.approx([0, 100, 200], abs=4)
    other = DrawnVideo(tmp_path / "b.mp4", Fraction(5))
    other.add(Image.new("RGB", (64, 48)))
    other.discard()
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_a_place_where_nothing_can_be_written(tmp_path):
    with pytest.raises(DataError, match="cannot be written"):
        DrawnVideo(tmp_path / "no" / "a.mp4", Fraction(5)).add(Image.new("RGB", (64, 48)))
