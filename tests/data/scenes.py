"""Small pictures with coloured rectangles and COCO's annotations of them, for tests of the import."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from mgdet.data import CocoSplit, Manifest, ShardedDataset, import_coco
from mgdet.errors import DataError

COLORS = ((220, 40, 40), (40, 200, 60))
CLASSES = ("red", "green")


class Scene:
    """A directory of pictures and the content of an annotation file, which a test changes before it is imported."""

    def __init__(self, root: Path, count: int = 4, width: int = 64, height: int = 48, suffix: str = ".png") -> None:
        self.root, self.images = root, root / "images"
        self.images.mkdir(parents=True, exist_ok=True)
        self.content: dict[str, Any] = {
            "images": [],
            "annotations": [],
            "categories": [{"id": k + 1, "name": name} for k, name in enumerate(CLASSES)],
        }
        for i in range(1, count + 1):
            self._add(i, width, height, suffix)

    def _add(self, number: int, width: int, height: int, suffix: str) -> None:
        r = np.random.default_rng(number)
        picture = Image.fromarray(r.integers(90, 130, (height, width, 3), dtype=np.uint8))
        pen = ImageDraw.Draw(picture)
        name = f"{number:04d}{suffix}"
        self.content["images"].append({"id": number, "file_name": name, "width": width, "height": height})
        for k, color in enumerate(COLORS):  # one in the left half, one in the right
            w, h = int(r.integers(width // 5, width // 2 - 2)), int(r.integers(height // 4, height - 4))
            x, y = k * width // 2 + int(r.integers(0, width // 2 - w)), int(r.integers(0, height - h))
            pen.rectangle([x, y, x + w - 1, y + h - 1], fill=color)
            self.content["annotations"].append(
                {
                    "id": len(self.content["annotations"]) + 1,
                    "image_id": number,
                    "category_id": k + 1,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                }
            )
        picture.save(self.images / name, quality=95)

    @property
    def annotations(self) -> list[dict[str, Any]]:
        """Those of the file."""
        found: list[dict[str, Any]] = self.content["annotations"]
        return found

    def prepare(self, **options: Any) -> Manifest:
        """Import it as the split train."""
        file = self.root / "train.json"
        file.write_text(json.dumps(self.content), encoding="utf-8")
        return import_coco(self.out, [CocoSplit("train", file, self.images)], overwrite=True, **options)

    @property
    def out(self) -> Path:
        """The prepared data set."""
        return self.root / "out"

    def dataset(self) -> ShardedDataset:
        """The split as it was prepared."""
        return ShardedDataset(str(self.out), "train")

    def coverage(self) -> float:
        """The least share of strongly coloured pixels in a box: 1 where every box lies on its rectangle."""
        from mgdet.data.decode import decode_image

        data, least = self.dataset(), 1.0
        for i in range(len(data)):
            pixels = decode_image(data.read_image(i)).numpy().astype(int)
            for x1, y1, x2, y2 in data.annotation(i).boxes.round().astype(int).tolist():
                crop = pixels[:, y1:y2, x1:x2].reshape(3, -1)
                least = min(least, float(np.mean(crop.max(0) - crop.min(0) > 90)))
        return least


def said(caplog: pytest.LogCaptureFixture) -> str:
    """All that was logged."""
    return "\n".join(record.getMessage() for record in caplog.records)


def refused(scene: Scene, **options: Any) -> str:
    """The message with which the import ends; nothing is written."""
    with pytest.raises(DataError) as caught:
        scene.prepare(**options)
    assert not scene.out.exists()
    return str(caught.value)
