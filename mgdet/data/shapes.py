"""The generated data set `shapes`: six classes of outlines on textured backgrounds, the same bytes for the same seed.

It needs no download, is learned in minutes, and tells a detector from a poor one: sizes from 12 pixels to 70% of the
image, various aspect ratios, objects that hide each other, images with nothing in them.
"""

import io
import os
from collections.abc import Iterator

import numpy as np
from PIL import Image
from pydantic import Field

from mgdet.config_base import Config
from mgdet.data.render import CLASS_NAMES, draw_scene
from mgdet.data.schema import Manifest, Progress, Record, manifest_exists, read_manifest
from mgdet.data.writer import write_dataset
from mgdet.errors import DataError
from mgdet.storage import locate
from mgdet.structures import Category

OTHERS_DRAW_S = 600.0
"""So long a training waits for another process that draws the same data set."""
GENERATOR_VERSION = 2
"""To be raised with every change of the drawn pixels, so that old data are not taken for new."""


class ShapesConfig(Config):
    """How many images to draw, and how hard they are."""

    train: int = Field(default=600, gt=0, le=1_000_000, description="images of the split train")
    val: int = Field(default=150, gt=0, le=1_000_000, description="images of the split val")
    size: int = Field(default=160, ge=48, le=4096, description="height and width in pixels")
    seed: int = Field(default=0, ge=0, lt=2**63, description="an image depends on it, its split and its index only")
    max_objects: int = Field(default=8, ge=1, le=100, description="objects in an image, at most")
    smallest: float = Field(
        default=0.08, gt=0, le=0.5, description="least width and height of an object, share of the image's; most is 0.7"
    )
    negatives: float = Field(default=0.05, ge=0, lt=1, description="share of images without an object")
    difficulty: float = Field(
        default=0.3,
        ge=0,
        le=1,
        description="0: upright outlines in their class's own hue on a calm background; 1: turned, stretched, hidden",
    )
    quality: int = Field(default=92, ge=10, le=100, description="quality of the JPEG files")


def generate_shapes(
    uri: str | os.PathLike[str],
    config: ShapesConfig | None = None,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
    wait_s: float = 0,
) -> Manifest:
    """Draw the data set and write it to `uri`; an image depends on seed, split and index only.

    For another process that writes there it waits `wait_s` seconds.

    Raises:
        OwnedError: another process writes there.
        DataError: `uri` exists already (and `overwrite` is not set) or cannot be written.
    """
    config = config or ShapesConfig()
    splits = {"train": config.train, "val": config.val}
    first_ids = {"train": 1, "val": 1 + config.train}
    return write_dataset(
        uri,
        {name: _records(config, i, name, first_ids[name], n, progress) for i, (name, n) in enumerate(splits.items())},
        name="shapes",
        categories=[Category(i + 1, name) for i, name in enumerate(CLASS_NAMES)],
        source=_source(config),
        overwrite=overwrite,
        wait_s=wait_s,
    )


def ensure_shapes(
    uri: str | os.PathLike[str], config: ShapesConfig | None = None, *, progress: Progress | None = None
) -> Manifest:
    """The manifest of exactly these shapes at `uri`; they are drawn if nothing is there yet.

    Raises:
        DataError: something else is there.
    """
    config = config or ShapesConfig()
    root = locate(uri)
    if not manifest_exists(root):
        try:
            return generate_shapes(uri, config, progress=progress, wait_s=OTHERS_DRAW_S)
        except DataError:
            if not manifest_exists(root):  # else another process was faster
                raise
    manifest = read_manifest(os.fspath(uri))
    if manifest.source != _source(config):
        raise DataError(
            f"{uri} holds {manifest.name!r} made with {manifest.source}, wanted are shapes made with "
            f"{_source(config)}. Choose another location, or generate it again with --overwrite."
        )
    return manifest


def _source(config: ShapesConfig) -> dict[str, object]:
    return {"generator": "shapes", "version": GENERATOR_VERSION, **config.model_dump()}


def _records(
    config: ShapesConfig, split_index: int, split: str, first_id: int, count: int, progress: Progress | None
) -> Iterator[Record]:
    for i in range(count):
        rng = np.random.default_rng([config.seed, split_index, i])
        negative = bool(rng.random() < config.negatives)
        scene = draw_scene(
            rng,
            config.size,
            max_objects=config.max_objects,
            smallest=config.smallest,
            negative=negative,
            difficulty=config.difficulty,
        )
        buffer = io.BytesIO()
        Image.fromarray(scene.image).save(buffer, format="JPEG", quality=config.quality)
        extent = scene.boxes[:, 2:] - scene.boxes[:, :2]
        yield Record(
            image_id=first_id + i,
            file_name=f"{split}/{i:06d}.jpg",
            width=config.size,
            height=config.size,
            image=buffer.getvalue(),
            boxes=scene.boxes,
            labels=scene.labels,
            iscrowd=np.zeros(len(scene.labels), dtype=np.bool_),
            area=extent[:, 0] * extent[:, 1],
        )
        if progress is not None and ((i + 1) % 50 == 0 or i + 1 == count):
            progress(f"drawing {split}", i + 1, count)
