"""What annotations and files often have wrong: mended and counted, or refused with the remedy."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mgdet.data import CocoSplit, ShardedDataset, import_coco
from mgdet.data.decode import decode_image
from mgdet.errors import DataError
from mgdet.evaluation import DetectionArrays, coco_ap
from tests.data.scenes import Scene, refused, said

# --- files that cannot be used


def test_each_unusable_file_is_named_with_its_reason(scene: Scene) -> None:
    (scene.images / "0001.png").write_bytes(b"<!DOCTYPE html><title>404</title>")
    (scene.images / "0002.png").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
    (scene.images / "0003.png").unlink()
    Image.new("F", (4, 4)).save(scene.images / "0004.tif")
    scene.content["images"][3]["file_name"] = "0004.tif"
    text = refused(scene)
    assert "4 image files cannot be used (1 missing, 3 undecodable)" in text
    for name, reason in (
        ("0001.png", "web page"),
        ("0002.png", "git lfs pull"),
        ("0003.png", "there is no such file"),
        ("0004.tif", "floating-point images are not supported, convert it to 8 or 16 bits"),
    ):
        assert any(name in line and reason in line for line in text.splitlines()), name


def test_a_cut_jpeg_is_refused_or_left_out(tmp_path: Path) -> None:
    scene = Scene(tmp_path, suffix=".jpg")
    file = scene.images / "0001.jpg"
    file.write_bytes(file.read_bytes()[:900] + b"\xff\xd9")
    assert "0001.jpg: not a readable image" in refused(scene)
    assert scene.prepare(skip_bad_images=True).changes.dropped_images == ("0001.jpg",)


def test_the_limit_of_pixels_is_an_option(scene: Scene) -> None:
    assert "too many pixels: 64 x 48 = 3072, allowed are 3000; raise the limit (--max-pixels" in refused(
        scene, max_pixels=3000
    )
    assert scene.prepare(max_pixels=3072).splits["train"].images == 4


# --- more than 8 bits


@pytest.mark.parametrize("bits", [12, 14, 16])
def test_deep_pictures_are_scaled_and_counted(scene: Scene, caplog: pytest.LogCaptureFixture, bits: int) -> None:
    for file in scene.images.iterdir():
        grey = np.asarray(Image.open(file).convert("L")).astype(np.uint16)
        grey[0, 0] = 255
        Image.fromarray(grey << (bits - 8)).save(file)
    with caplog.at_level(logging.WARNING):
        assert scene.prepare().changes.deep == 4
    assert f"4 images have more than 8 bits .*0001.png uses {bits} of 16 bits".split(".*")[1] in said(caplog)
    assert int(decode_image(scene.dataset().read_image(0)).max()) == 255


# --- boxes of another picture


def with_orientation(scene: Scene, orientation: int, *numbers: int) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    for number in numbers or range(1, len(scene.content["images"]) + 1):
        file = next(scene.images.glob(f"{number:04d}.*"))
        with Image.open(file) as picture:
            picture.load()
        picture.save(file, quality=95, exif=exif)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_boxes_of_stored_pixels_are_turned_with_the_picture(tmp_path: Path, orientation: int) -> None:
    scene = Scene(tmp_path, width=80, height=56, suffix=".jpg")
    with_orientation(scene, orientation)
    changes = scene.prepare().changes
    assert (changes.turned, changes.clipped, changes.outside) == (4, 0, 0)
    assert scene.dataset().sizes.tolist() == [[80, 56]] * 4
    assert scene.coverage() > 0.9


def test_upright_boxes_stay(tmp_path: Path) -> None:
    scene = Scene(tmp_path, width=80, height=56, suffix=".jpg")
    with_orientation(scene, 6)
    for image in scene.content["images"]:
        image["width"], image["height"] = 56, 80
    for thing in scene.annotations:
        x, y, w, h = thing["bbox"]
        thing["bbox"] = [56 - y - h, x, h, w]
    assert scene.prepare().changes.turned == 0
    assert scene.coverage() > 0.9


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_a_mirrored_picture_follows_the_others_of_its_split(
    tmp_path: Path, orientation: int, caplog: pytest.LogCaptureFixture
) -> None:
    scene = Scene(tmp_path, width=80, height=56, suffix=".jpg")
    with_orientation(scene, orientation, 1)
    with caplog.at_level(logging.WARNING):
        assert scene.prepare().changes.turned == 0
    assert "1 images carry an EXIF orientation, and nothing shows" in said(caplog)
    with_orientation(scene, 6, 2)  # its size proves that the boxes of this export are those of stored pixels
    assert scene.prepare().changes.turned == 2
    assert scene.coverage() > 0.9


@pytest.mark.parametrize("factor", [0.5, 0.4, 1.5])
def test_boxes_of_another_size_are_rescaled_to_the_file(tmp_path: Path, factor: float) -> None:
    scene = Scene(tmp_path, width=160, height=120)
    for file in scene.images.iterdir():
        with Image.open(file) as picture:
            picture.resize((round(160 * factor), round(120 * factor)), Image.Resampling.BOX).save(file)
    area = scene.annotations[0]["area"]
    changes = scene.prepare().changes
    assert (changes.rescaled, changes.resized, changes.clipped) == (4, 4, 0)
    assert scene.coverage() > 0.85
    assert scene.dataset().ground_truth().area[0] == pytest.approx(area * factor**2)


def test_files_that_were_stretched_are_rescaled_where_boxes_prove_it(tmp_path: Path) -> None:
    scene = Scene(tmp_path, width=160, height=120)
    for file in scene.images.iterdir():
        with Image.open(file) as picture:
            picture.resize((80, 80), Image.Resampling.BOX).save(file)
    assert scene.prepare().changes.rescaled == 4
    assert scene.coverage() > 0.85


def test_a_turned_and_smaller_file(tmp_path: Path) -> None:
    scene = Scene(tmp_path, width=160, height=120, suffix=".jpg")
    for file in scene.images.iterdir():
        with Image.open(file) as picture:
            picture.resize((80, 60), Image.Resampling.BOX).save(file, quality=95)
    with_orientation(scene, 8)
    changes = scene.prepare().changes
    assert (changes.turned, changes.rescaled) == (4, 4)
    assert scene.coverage() > 0.8


def test_a_wrong_size_alone_changes_no_box(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    """Boxes that reach beyond the annotated size cannot refer to it."""
    for image in scene.content["images"]:
        image["width"], image["height"] = 32, 24
    with caplog.at_level(logging.WARNING):
        changes = scene.prepare().changes
    assert (changes.resized, changes.rescaled) == (4, 0)
    assert "4 images have another size than their annotations say" in said(caplog)
    assert scene.coverage() == 1.0


# --- boxes in other units or another order of numbers


def rewritten(scene: Scene, change: Callable[[list[float]], list[float]]) -> None:
    for thing in scene.annotations:
        thing["bbox"] = change(thing["bbox"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda b: [b[0] / 64, b[1] / 48, b[2] / 64, b[3] / 48], "all 24 boxes lie within 1 pixel"),
        (lambda b: [b[0] / 64, b[1] / 48, (b[0] + b[2]) / 64, (b[1] + b[3]) / 48], "all 24 boxes lie within 1 pixel"),
        (lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]], "read as x1, y1, x2, y2 (corners) they fit"),
        (lambda b: [b[0] + b[2] / 2, b[1] + b[3] / 2, b[2], b[3]], "read as centre x, centre y, width, height"),
        (lambda b: [b[1], b[0], b[3], b[2]], "read as y, x, height, width they fit"),
        (lambda b: [b[0] / 0.064, b[1] / 0.048, b[2] / 0.064, b[3] / 0.048], "thousandths of the image they fit"),
    ],
    ids=["fractions", "fractions of corners", "corners", "centres", "rows first", "thousandths"],
)
def test_boxes_in_another_unit_or_order_are_refused(
    tmp_path: Path, change: Callable[[list[float]], list[float]], says: str, caplog: pytest.LogCaptureFixture
) -> None:
    scene = Scene(tmp_path, count=12)
    rewritten(scene, change)
    text = refused(scene)
    assert says in text
    assert "--accept-boxes" in text
    with caplog.at_level(logging.WARNING):
        scene.prepare(accept_boxes=True)
    assert says in said(caplog)


def test_a_few_fractions_are_told(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    scene.annotations[0]["bbox"] = [0.1, 0.2, 0.5, 0.6]
    with caplog.at_level(logging.WARNING):
        scene.prepare()
    assert "1 of 8 boxes lie within 1 pixel" in said(caplog)


def test_boxes_of_a_part_of_the_image_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Percent of a large image are pixels near its corner."""
    scene = Scene(tmp_path, count=12, width=400, height=300)
    rewritten(scene, lambda b: [b[0] / 4, b[1] / 3, b[2] / 4, b[3] / 3])
    with caplog.at_level(logging.WARNING):
        scene.prepare()
    assert "no box of 24 reaches beyond" in said(caplog)


def test_the_share_of_cut_boxes_is_told(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    scene.annotations[0]["bbox"] = [60, 2, 30, 10]
    with caplog.at_level(logging.WARNING):
        scene.prepare()
    assert "1 clipped at the border (12.5 % of 8)" in said(caplog)


# --- areas


@pytest.mark.parametrize("area", [-300, 0, 1e9, 0.03, -0.0])
def test_impossible_areas_are_replaced(scene: Scene, area: float, caplog: pytest.LogCaptureFixture) -> None:
    scene.annotations[2]["area"] = area
    with caplog.at_level(logging.WARNING):
        assert scene.prepare().changes.replaced_area == 1
    w, h = scene.annotations[2]["bbox"][2:]
    assert scene.dataset().ground_truth().area[2] == w * h
    assert "1 areas cannot be" in said(caplog)


@pytest.mark.parametrize("share", [0.02, 0.4, 1.0])
def test_areas_of_masks_stay(scene: Scene, share: float) -> None:
    w, h = scene.annotations[2]["bbox"][2:]
    scene.annotations[2]["area"] = w * h * share
    assert scene.prepare().changes.replaced_area == 0
    assert scene.dataset().ground_truth().area[2] == w * h * share


# --- ids and numbers


def test_ids_of_64_bits_are_kept(scene: Scene) -> None:
    ids = {image["id"]: 2**63 - 1 - image["id"] for image in scene.content["images"]}
    for image in scene.content["images"]:
        image["id"] = ids[image["id"]]
    for thing in scene.annotations:
        thing["image_id"] = ids[thing["image_id"]]
    scene.prepare()
    assert scene.dataset().image_ids.tolist() == list(ids.values())


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 1e300, 1.5, 2.0**60, True, None])
def test_other_ids_are_refused(scene: Scene, number: object) -> None:
    scene.content["images"][0]["id"] = number
    assert "'id' is" in refused(scene)
    scene.content["images"][0]["id"] = 1
    scene.content["categories"][0]["id"] = number
    assert "'id' is" in refused(scene)


@pytest.mark.parametrize("key", ["bbox", "area", "width"])
def test_numbers_beyond_floats_are_refused(scene: Scene, key: str) -> None:
    huge = 10**400
    if key == "width":
        scene.content["images"][0]["width"] = huge
    else:
        scene.annotations[0][key] = [huge, 1, 2, 3] if key == "bbox" else huge
    assert f"'{key}' is '{'[' if key == 'bbox' else ''}1000" in refused(scene)


def test_numbers_of_thousands_of_digits_are_refused(scene: Scene) -> None:
    scene.prepare()
    file = scene.root / "train.json"
    file.write_text(file.read_text().replace('"area": ', '"area": ' + "9" * 5000, 1))
    with pytest.raises(DataError, match="is not JSON"):
        import_coco(scene.root / "other", [CocoSplit("train", file, scene.images)])


# --- what stands there twice, and classes without objects


def test_a_file_under_two_ids_is_one_image(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    images = scene.content["images"]
    images += [{**images[0], "id": 50}, {**images[1], "id": 51, "file_name": "./0002.png"}]
    scene.annotations[3]["image_id"] = 51
    with caplog.at_level(logging.WARNING):
        manifest = scene.prepare()
    assert manifest.changes.repeated_images == 2
    assert (manifest.splits["train"].images, manifest.splits["train"].boxes) == (4, 8)
    assert "2 files are listed under two ids" in said(caplog)
    assert "0001.png: 1 and 50, the second without boxes; ./0002.png: 2 and 51" in said(caplog)
    assert scene.prepare(keep_repeated=True).splits["train"].images == 6


def test_equal_annotations_are_one(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    scene.annotations.extend([{**thing, "id": 900 + k} for k, thing in enumerate(scene.annotations[:2])])
    scene.annotations.append({**scene.annotations[0], "category_id": 2, "id": 990})  # of another class: another object
    with caplog.at_level(logging.WARNING):
        manifest = scene.prepare()
    assert manifest.changes.repeated_boxes == 2
    assert manifest.splits["train"].boxes == 9
    assert "2 annotations repeat another one (same image, class and box)" in said(caplog)
    assert scene.prepare(keep_repeated=True).splits["train"].boxes == 11


def test_classes_without_objects_and_with_similar_names_are_told(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    for category in scene.content["categories"]:
        category["supercategory"] = "shapes"
    scene.content["categories"] += [{"id": 0, "name": "shapes"}, {"id": 9, "name": "Red "}]
    with caplog.at_level(logging.WARNING):
        scene.prepare()
    assert "2 classes have 0 objects in train: shapes (it is the supercategory of red, green), Red " in said(caplog)
    assert "class names differ only by case, spaces or punctuation: 'red', 'Red '" in said(caplog)


def test_classes_without_objects_can_be_left_out(scene: Scene) -> None:
    scene.content["categories"].insert(0, {"id": 0, "name": "shapes"})
    assert [c.name for c in scene.prepare().categories] == ["shapes", "red", "green"]
    manifest = scene.prepare(drop_empty_classes=True)
    assert [(c.id, c.name) for c in manifest.categories] == [(1, "red"), (2, "green")]
    assert scene.dataset().ground_truth().labels.tolist() == [0, 1] * 4


def test_files_in_two_splits_are_told(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    scene.prepare()
    file = scene.root / "train.json"
    with caplog.at_level(logging.WARNING):
        import_coco(scene.root / "two", [CocoSplit(name, file, scene.images) for name in ("train", "val")])
    assert "4 files are in both train and val" in said(caplog)


# --- evaluation treats the fields as COCO's own code does


@pytest.mark.parametrize("backend", ["faster", "pycocotools"])
def test_every_field_counts_as_in_cocos_own_code(tmp_path: Path, backend: Any) -> None:
    """pycocotools on the annotation file itself against the imported data set."""
    scene = Scene(tmp_path, count=8, width=320, height=240)
    r = np.random.default_rng(3)
    for k, thing in enumerate(scene.annotations):
        thing["iscrowd"] = int(k % 5 == 0)
        thing["ignore"] = int(k % 3 == 0)  # COCO's code overwrites it
        thing["area"] = thing["area"] * float(r.choice([0.02, 0.3, 1.0]))
    first = 2**60
    for entry, key in [(i, "id") for i in scene.content["images"]] + [(a, "image_id") for a in scene.annotations]:
        entry[key] = first - entry[key]
    scene.prepare()
    truth = scene.dataset().ground_truth()
    rows = np.repeat(np.arange(len(truth.boxes)), 3)
    shift = r.normal(0, 9, (len(rows), 4)) * (np.arange(len(rows)) % 3 > 0)[:, None]
    boxes = truth.boxes[rows] + shift
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    scores = np.round(r.random(len(rows)), 1)  # ties
    order = np.argsort(truth.box_image[rows], kind="stable")
    found = DetectionArrays(*(a[order] for a in (truth.box_image[rows], boxes, scores, truth.labels[rows])))

    coco = COCO(str(scene.root / "train.json"))
    results = [
        {
            "image_id": int(truth.image_ids[image]),
            "category_id": truth.categories[label].id,
            "bbox": [*box[:2].tolist(), *np.round(box[2:] - box[:2], 8).tolist()],
            "score": float(score),
        }
        for image, box, score, label in zip(found.image, found.boxes, found.scores, found.labels, strict=True)
    ]
    oracle = COCOeval(coco, coco.loadRes(results), "bbox")
    oracle.evaluate()
    oracle.accumulate()
    oracle.summarize()
    ours = coco_ap(truth, found, backend)
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
    expected = [None if value == -1 else pytest.approx(value, abs=1e-9) for value in oracle.stats]
    assert [getattr(ours, name) for name in names] == expected
    assert 0.1 < oracle.stats[0] < 0.9


def test_a_sound_data_set_is_imported_without_a_word(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        changes = scene.prepare().changes
    assert said(caplog) == ""
    assert json.loads(changes.model_dump_json(exclude={"dropped_boxes", "dropped_images"})).values()
    assert not any(v for k, v in changes if k not in ("dropped_boxes", "dropped_images"))
    assert isinstance(scene.dataset(), ShardedDataset)


def test_several_files_of_annotations_make_one_split(tmp_path, caplog):
    scene = Scene(tmp_path, count=4)
    scene.prepare()
    whole = scene.dataset().ground_truth()
    content = scene.content
    files = []
    for k in (1, 2):  # the first file has class 1 of all images, the second class 2 of images that it numbers anew
        images = [{**image, "id": image["id"] + (k - 1)} for image in content["images"]]
        annotations = [
            {**each, "image_id": each["image_id"] + (k - 1)}
            for each in content["annotations"]
            if each["category_id"] == k
        ]
        files.append(tmp_path / f"{k}.json")
        files[-1].write_text(json.dumps({**content, "images": images, "annotations": annotations}))
    splits = [CocoSplit("train", file, scene.images) for file in files]
    manifest = import_coco(scene.out, splits, overwrite=True)
    truth = scene.dataset().ground_truth()
    assert manifest.source["annotations"] == {"train": "1.json, 2.json"}
    assert truth.image_ids.tolist() == whole.image_ids.tolist()
    for label in (0, 1):
        assert np.array_equal(truth.boxes[truth.labels == label], whole.boxes[whole.labels == label])
    with pytest.raises(DataError, match="given twice, with the image directories"):
        import_coco(scene.out, [splits[0], splits[1]._replace(images=tmp_path)], overwrite=True)


def test_images_of_other_files_with_the_same_id_get_a_new_one(tmp_path, caplog):
    scene = Scene(tmp_path, count=4)
    content, files = scene.content, []
    for k in (0, 1):  # two images each, both with the ids 1 and 2
        images = [{**image, "id": i + 1} for i, image in enumerate(content["images"][2 * k : 2 * k + 2])]
        annotations = [
            {**each, "image_id": each["image_id"] - 2 * k}
            for each in content["annotations"]
            if 2 * k < each["image_id"] <= 2 * k + 2
        ]
        files.append(tmp_path / f"{k}.json")
        files[-1].write_text(json.dumps({**content, "images": images, "annotations": annotations}))
    import_coco(scene.out, [CocoSplit("train", file, scene.images) for file in files])
    data = scene.dataset()
    assert [data.file_name(i) for i in range(4)] == [f"{n:04d}.png" for n in range(1, 5)]
    assert data.image_ids.tolist() == [1, 2, 3, 4]
    assert "2 images have the id of an image of another file and get a new one: 0003.png, 0004.png" in said(caplog)
    assert scene.coverage() == pytest.approx(1)
