"""Small data sets that the tests of this directory share."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mgdet.data import ShapesConfig, ShardedDataset, generate_shapes
from tests.data.scenes import Scene

REAL_DATA = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> ShardedDataset:
    """150 small generated images in three row groups."""
    uri = str(tmp_path_factory.mktemp("data") / "shapes")
    generate_shapes(uri, ShapesConfig(train=150, val=7, size=64))
    return ShardedDataset(uri, "train")


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six training and three validation images, which no test changes."""
    root = tmp_path_factory.mktemp("whole") / "shapes"
    generate_shapes(str(root), ShapesConfig(train=6, val=3, size=64))
    return root


@pytest.fixture
def root(whole: Path, tmp_path: Path) -> Path:
    """A copy of `whole`, to be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "shapes"))


@pytest.fixture(scope="session")
def bccd() -> Path:
    """The directory of the blood cell data, 640x480 JPEGs with COCO annotations."""
    path = REAL_DATA / "bccd"
    if not path.is_dir():
        pytest.skip(f"the real data are not at {path}")
    return path


@pytest.fixture
def jpeg() -> bytes:
    """A 40 x 30 (width x height) JPEG, its left half red and its right half blue."""
    pixels = np.zeros((30, 40, 3), dtype=np.uint8)
    pixels[:, :20, 0] = 255
    pixels[:, 20:, 2] = 255
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """Four pictures with two coloured rectangles each, and annotations that a test may spoil."""
    return Scene(tmp_path)
