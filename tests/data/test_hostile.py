"""Bad files and annotations at import, in training and in prediction: read right, or refused with file and remedy."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from mgdet.data import CocoSplit, ShardedDataset, import_coco
from mgdet.data.dataset import UnreadableImage
from mgdet.data.decode import decode_image
from mgdet.data.loader import TrainImages
from mgdet.data.order import SampleKey
from mgdet.data.schema import Record
from mgdet.data.transforms import TransformConfig
from mgdet.data.writer import write_dataset
from mgdet.errors import DataError
from mgdet.inference.prediction import pixels_of
from mgdet.structures import Category
from tests.data import hostile

FILES, ANNOTATIONS = hostile.files(), hostile.annotations()
REFUSED = {name: file for name, file in FILES.items() if file.says}
DOCS = Path(__file__).parents[2] / "docs" / "data.md"
REMEDY = re.compile(
    r"\b(Add|Correct|Export|Give|Rename|Replace|allowed|allow-outside|accept|Ids are unique|Nothing was written)\b"
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    """All files, each under its number."""
    root = tmp_path_factory.mktemp("hostile")
    for number, file in enumerate(FILES.values()):
        (root / f"{number:02d}{file.suffix}").write_bytes(file.content)
    return root


def test_there_are_sixty_kinds_and_the_page_has_them():
    assert len(FILES) + len(ANNOTATIONS) >= 60
    page = " ".join(DOCS.read_text().split())
    assert [name for name in (*FILES, *ANNOTATIONS) if name not in page] == []


def test_files_in_prediction(directory):
    for path, (name, file) in zip(sorted(directory.iterdir()), FILES.items(), strict=True):
        if not file.says:
            pixels = pixels_of(path)
            assert (pixels.dtype, pixels.shape[0]) == (torch.uint8, 3), name
            continue
        with pytest.raises(DataError) as caught:
            pixels_of(path)
        said = str(caught.value)
        assert path.name in said, name
        assert file.says in said, (name, said)
        assert "Replace the file or leave it out" in said, name


def test_what_is_read_is_the_picture():
    """Those that hold the same picture of 48 x 36 pixels, but for what their format loses."""
    expected = torch.from_numpy(np.array(hostile.photo())).permute(2, 0, 1).int()
    compared = 0
    for name, file in FILES.items():
        if not file.says and name not in ("grey", "grey with alpha", "black and white", "16 bits"):
            pixels = decode_image(file.content).int()
            pixels = pixels.flip(1, 2) if name == "an EXIF orientation" else pixels
            if pixels.shape == expected.shape:
                assert (pixels - expected).abs().float().mean() < 20, name  # the palette has 216 colours
                compared += 1
    assert compared == 14


def test_files_at_import(directory, tmp_path):
    """Every one that is refused is named in one message; the others are imported byte for byte."""
    paths = sorted(directory.iterdir())
    images = [{"id": k, "file_name": path.name} for k, path in enumerate(paths)]
    tree = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "x"}]}
    (tmp_path / "a.json").write_text(json.dumps(tree))
    split = [CocoSplit("train", tmp_path / "a.json", directory)]
    with pytest.raises(DataError, match=f"{len(REFUSED)} image files cannot be used") as caught:
        import_coco(tmp_path / "out", split)
    assert "pass --skip-bad-images" in str(caught.value)
    assert str(paths[0]) in str(caught.value)
    manifest = import_coco(tmp_path / "out", split, skip_bad_images=True)
    assert manifest.changes.bad_images == len(REFUSED)
    assert set(manifest.changes.dropped_images) == {
        path.name for path, file in zip(paths, FILES.values(), strict=True) if file.says
    }
    data = ShardedDataset(str(tmp_path / "out"), "train")
    assert [data.read_image(row) for row in range(len(data))] == [f.content for f in FILES.values() if not f.says]


def test_files_in_training(tmp_path):
    """Where one stands in a prepared data set after all."""
    nothing = (np.zeros((0, 4)), np.zeros(0, np.int32), np.zeros(0, np.bool_), np.zeros(0))
    rows = [
        Record(k, f"{k}.png", hostile.WIDTH, hostile.HEIGHT, file.content, *nothing)
        for k, file in enumerate(REFUSED.values())
    ]
    write_dataset(tmp_path / "out", {"train": rows}, name="x", categories=[Category(1, "x")])
    images = TrainImages(ShardedDataset(str(tmp_path / "out"), "train"), TransformConfig(), seed=0)
    for k, (name, file) in enumerate(REFUSED.items()):
        with pytest.raises(UnreadableImage) as caught:
            images[SampleKey(0, k)]
        said = str(caught.value)
        assert said.startswith(f"image {k}.png (id {k}, "), name
        assert file.says in said, name


@pytest.mark.parametrize("name", ANNOTATIONS)
def test_annotations_at_import(name, tmp_path):
    bad = ANNOTATIONS[name]
    (tmp_path / "images").mkdir()
    for path in (tmp_path / "images/a.png", tmp_path / "b.png"):
        path.write_bytes(FILES["BMP"].content)
    (tmp_path / "train.json").write_bytes(bad.content)
    split = [CocoSplit("train", tmp_path / "train.json", tmp_path / "images")]
    if bad.says:
        with pytest.raises(DataError) as caught:
            import_coco(tmp_path / "out", split)
        said = str(caught.value)
        assert "train.json" in said or str(tmp_path / "images") in said
        assert re.search(bad.says, said), said
        assert REMEDY.search(said) or "not JSON" in said, said
        assert not (tmp_path / "out").exists()
        return
    changes = import_coco(tmp_path / "out", split).changes.model_dump(exclude={"dropped_boxes", "dropped_images"})
    assert {key: value for key, value in changes.items() if value} == bad.changes
    truth = ShardedDataset(str(tmp_path / "out"), "train").ground_truth()
    assert len(truth.boxes) == bad.boxes
    if not bad.changes:
        assert sorted(truth.boxes.tolist()) == [[4, 5, 24, 17], [26, 9, 41, 30]]
