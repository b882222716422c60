"""A copy of a COCO data set with faults in it, each planted in an image of its own and noted by id."""

import copy
import io
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mgdet.data.export import export_dataset
from mgdet.data.formats import Coco
from mgdet.data.shapes import ShapesConfig, generate_shapes

Contents = dict[str, dict[str, Any]]


class Place(NamedTuple):
    """What a finding is about: its kind, split, image and annotation."""

    kind: str
    split: str
    image: int | None
    annotation: int | None = None


class Planted(NamedTuple):
    """The broken copy, and what must be found in it."""

    contents: Contents
    splits: list[tuple[str, list[Path]]]
    """What `mgdet doctor coco` takes."""
    faults: list[set[Place]]
    """Of each fault the findings by id: more than one where it breaks more than one thing."""
    kinds: set[str]
    """Findings about classes, which have no ids."""


def shapes_as_coco(out: Path, seed: int = 4) -> tuple[Contents, dict[str, Path]]:
    """Generated shapes, every image with objects, as COCO's JSON by split and the directory of its images."""
    config = ShapesConfig(train=46, val=10, size=64, smallest=0.2, negatives=0, seed=seed)
    generate_shapes(out / "prepared", config)
    places = export_dataset(str(out / "prepared"), Coco(), str(out / "clean"))
    contents: Contents = {}
    for split, (annotations, _) in places.items():
        contents[split] = json.loads(Path(annotations).read_text())
    first = 1
    for content in contents.values():  # unique over the splits, so that an id says where
        for number, annotation in enumerate(content["annotations"], first):
            annotation["id"] = number
        first += len(content["annotations"])
    return contents, {split: Path(paths[1]) for split, paths in places.items()}


class Breaker:
    """Copies the files of a data set to `out` and plants faults."""

    def __init__(self, contents: Contents, images: dict[str, Path], out: Path) -> None:
        self.contents, self.images, self.out = copy.deepcopy(contents), images, out
        self.faults: list[set[Place]] = []
        self.waiting: dict[str, list[dict[str, Any]]] = {}
        for split, content in self.contents.items():
            (out / split).mkdir(parents=True)
            for image in content["images"]:
                shutil.copyfile(images[split] / image["file_name"], out / split / image["file_name"])
            self.waiting[split] = list(content["images"])
        self.next_id = 1 + max(a["id"] for content in self.contents.values() for a in content["annotations"])

    def image(self, split: str = "train") -> dict[str, Any]:
        """An image that has no fault yet."""
        return self.waiting[split].pop(0)

    def objects(self, image: dict[str, Any], split: str = "train") -> list[dict[str, Any]]:
        return [a for a in self.contents[split]["annotations"] if a.get("image_id") == image["id"]]

    def box(self, split: str = "train") -> dict[str, Any]:
        """The largest annotation of an image without faults."""
        return max(self.objects(self.image(split), split), key=lambda a: a["bbox"][2] * a["bbox"][3])

    def add(self, image: dict[str, Any], bbox: list[float], category: int, split: str = "train") -> dict[str, Any]:
        """A further annotation."""
        area = max(0.0, bbox[2] * bbox[3])
        made = {"id": self.next_id, "image_id": image["id"], "category_id": category, "bbox": bbox, "area": area}
        made["iscrowd"] = 0
        self.next_id += 1
        self.contents[split]["annotations"].append(made)
        return made

    def of_image(self, kind: str, image: dict[str, Any], split: str = "train") -> None:
        self.faults.append({Place(kind, split, image["id"])})

    def of_box(self, annotation: dict[str, Any], *kinds: str, split: str = "train") -> None:
        self.faults.append({Place(kind, split, annotation["image_id"], annotation["id"]) for kind in kinds})

    def path(self, image: dict[str, Any], split: str = "train") -> Path:
        return self.out / split / image["file_name"]

    def write(self, image: dict[str, Any], data: bytes, split: str = "train") -> None:
        """Replace a file."""
        self.path(image, split).write_bytes(data)

    def pixels(self, image: dict[str, Any], split: str = "train") -> Image.Image:
        return Image.open(self.path(image, split)).convert("RGB")

    def finish(self, kinds: set[str]) -> Planted:
        splits = []
        for split, content in self.contents.items():
            path = self.out / f"{split}.json"
            path.write_text(json.dumps(content))
            splits.append((split, [path, self.out / split]))
        return Planted(self.contents, splits, self.faults, kinds)


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def break_copy(contents: Contents, images: dict[str, Path], out: Path) -> Planted:
    """More than 40 faults; the data set needs 46 images with objects in train and 4 in val."""
    b = Breaker(contents, images, out)
    _files(b)
    _boxes(b)
    _entries(b)
    _copies(b)
    return b.finish(_classes(b))


def _files(b: Breaker) -> None:
    for _ in range(2):
        b.path(image := b.image()).unlink()
        b.of_image("missing", image)
    for damage in (lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"<html>not found</html>"):
        b.write(image := b.image(), damage(b.path(image).read_bytes()))
        b.of_image("unreadable", image)
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down: the annotated size proves nothing
    b.write(image := b.image(), encoded(b.pixels(image), "JPEG", exif=exif))
    b.of_image("undecided", image)
    b.write(image := b.image(), encoded(b.pixels(image).convert("CMYK"), "JPEG"))
    b.of_image("cmyk", image)
    b.write(image := b.image(), encoded(b.pixels(image).convert("RGBA"), "PNG"))
    b.of_image("alpha", image)
    grey = np.asarray(b.pixels(image := b.image()).convert("L")).astype(np.uint16)
    b.write(image, encoded(Image.fromarray(grey << 8), "PNG"))
    b.of_image("deep", image)
    grey = np.asarray(b.pixels(image := b.image()).convert("L")).astype(np.uint16)
    grey[0, 0] = 65535
    b.write(image, encoded(Image.fromarray(grey), "PNG"))
    b.of_image("dark", image)
    picture = b.pixels(image := b.image())
    b.write(image, encoded(picture, "TIFF", save_all=True, append_images=[picture.rotate(90)]))
    b.of_image("frames", image)
    b.write(image := b.image(), encoded(Image.new("RGB", (image["width"], image["height"]), "navy"), "JPEG"))
    b.of_image("blank", image)
    image = b.image()
    image["height"] += 7
    b.of_image("size", image)
    image = b.image()
    image["height"] *= 2
    image["width"] *= 2
    b.of_image("rescaled", image)
    image = b.image()
    image["file_name"] = image["file_name"].upper()
    b.of_image("renamed", image)
    (b.out / "train" / "forgotten.png").write_bytes(encoded(Image.new("RGB", (9, 9)), "PNG"))
    b.faults.append({Place("unlisted", "", None)})


def _boxes(b: Breaker) -> None:
    for changed in ({2: 0.0}, {3: -9.0}, {0: float("nan")}):
        annotation = b.box()
        for place, value in changed.items():
            annotation["bbox"][place] = value
        b.of_box(annotation, "degenerate")
    for x in (-500.0, 5000.0):
        annotation = b.box()
        annotation["bbox"][0] = x
        b.of_box(annotation, "outside")
    image = b.image()
    b.of_box(b.add(image, [image["width"] - 20.0, 1.0, 30.0, 18.0], 1), "clipped")
    image = b.image()
    b.of_box(b.add(image, [1.0, -15.0, 30.0, 40.0], 1), "clipped")
    for area in (-5.0, 1e9):
        annotation = b.box()
        annotation["area"] = area
        b.of_box(annotation, "area")
    image = b.image()
    b.of_box(b.add(image, [5.0, 5.0, 3.0, 3.0], 1), "tiny")
    image = b.image()
    b.of_box(b.add(image, [0.0, 0.0, float(image["width"]), float(image["height"])], 1), "whole")
    image = b.image()
    b.of_box(b.add(image, [0.1, 0.2, 0.5, 0.4], 1), "fractions", "tiny")
    for less, another in ((0.0, 0), (0.4, 0), (0.0, 1)):
        annotation = b.box()
        x, y, w, h = annotation["bbox"]
        categories = [c["id"] for c in b.contents["train"]["categories"]]
        category = categories[(categories.index(annotation["category_id"]) + another) % len(categories)]
        made = b.add({"id": annotation["image_id"]}, [x, y, w - less, h], category)
        b.of_box(made, "two_classes" if another else "twice")
    for _ in range(2):
        image = b.image()
        ids = {a["id"] for a in b.objects(image)}
        b.contents["train"]["annotations"] = [a for a in b.contents["train"]["annotations"] if a["id"] not in ids]
        b.of_image("no_objects", image)


def _entries(b: Breaker) -> None:
    image = b.image()
    for changed in ({"category_id": 777}, {"bbox": [1, 2, 3]}, {"bbox": "1 2 3 4"}, {"iscrowd": 7}, {"area": "big"}):
        made = b.add(image, [2.0, 2.0, 12.0, 9.0], 1)
        made.update(changed)
        b.of_box(made, "refused")
    made = b.add({"id": 10**6}, [2.0, 2.0, 12.0, 9.0], 1)
    b.of_box(made, "refused")
    made = b.add(image, [2.0, 2.0, 12.0, 9.0], 1)
    del made["image_id"]
    b.faults.append({Place("refused", "train", None, made["id"])})
    image = b.image()
    b.contents["train"]["images"].append({**image, "file_name": "another.jpg"})
    b.of_image("refused", image)
    first, image = b.box(), b.image()
    made = b.add(image, [2.0, 2.0, 12.0, 9.0], 1)
    made["id"] = first["id"]
    b.of_box(made, "annotation_id")


def _copies(b: Breaker) -> None:
    for _ in range(2):
        source, image = b.image(), b.image("val")
        b.write(image, b.path(source).read_bytes(), "val")
        b.of_image("leaked", image, "val")
    for change in (lambda p: encoded(p, "JPEG", quality=60), lambda p: encoded(p.point(lambda v: v * 0.85), "PNG")):
        source, image = b.image(), b.image("val")
        b.write(image, change(b.pixels(source)), "val")
        b.of_image("near_leak", image, "val")
    source, image = b.image(), b.image()
    b.write(image, b.path(source).read_bytes())
    b.of_image("repeated_file", image)
    source, image = b.image(), b.image()
    b.write(image, encoded(b.pixels(source), "JPEG", quality=50))
    b.of_image("near_copies", image)


def _classes(b: Breaker) -> set[str]:
    name = b.contents["train"]["categories"][0]["name"]
    for content in b.contents.values():
        content["categories"] += [{"id": 90, "name": "ghost"}, {"id": 91, "name": f"{name.upper()} "}]
    b.box()["category_id"] = 91
    return {"empty_class", "id_gaps", "similar_names", "rare_class"}
