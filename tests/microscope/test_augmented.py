"""The sheet of what training sees."""

import io

import numpy as np
import pytest
from PIL import Image

from mgdet.cli import main
from mgdet.data.dataset import ShardedDataset
from mgdet.data.loader import EvalImages, TrainImages
from mgdet.data.order import SampleKey
from mgdet.errors import DataError
from mgdet.microscope.augmented import CELL, GAP, draw_sheet
from tests.small import small_experiment


@pytest.fixture
def experiment(tmp_path):
    augment = {"mosaic": {"probability": 1, "closing_epochs": 1}, "rotate": {}}
    return small_experiment(tmp_path, data__transform__augment=augment, data__transform__hflip=0.0)


def test_the_command_shows_the_images_of_the_training(experiment, tmp_path, capsys):
    (tmp_path / "e.yaml").write_text(experiment.to_yaml())
    out = tmp_path / "seen"
    arguments = ["visualize", str(tmp_path / "e.yaml"), "--augment", "--images", "1,2", "--out", str(out)]
    assert main.main(arguments) == 0
    assert str(out / "augmented.png") in capsys.readouterr().out
    with Image.open(out / "augmented.png") as sheet:
        assert sheet.width == GAP + 3 * (CELL + GAP)  # evaluation, and the two epochs of this training
    assert main.main(arguments) == 2  # it is there already


def test_the_pictures_are_those_of_the_loader(experiment, tmp_path):
    from mgdet.data.shapes import ensure_shapes

    data = experiment.data
    ensure_shapes(data.uri, data.generate)
    dataset = ShardedDataset(data.uri, "train")
    plain, changed = (
        EvalImages(dataset, data.transform),
        TrainImages(dataset, data.transform, experiment.seed, epochs=2),
    )
    row = [plain[0], changed[SampleKey(0, 0)], changed[SampleKey(1, 0)]]
    without = [one._replace(data=one.data.keep(one.data.labels < -1), crowds=None) for one in row]
    with Image.open(io.BytesIO(draw_sheet([without], ["a"], ["x"]))) as sheet:
        pixels = np.asarray(sheet)
    for column, sample in enumerate(row):
        expected = Image.fromarray(sample.data.image.permute(1, 2, 0).numpy())
        expected = np.asarray(expected.resize((CELL, CELL), Image.Resampling.BICUBIC))
        left = GAP + column * (CELL + GAP)
        places = np.flatnonzero((pixels[:, left : left + CELL] == expected[0]).all(axis=(1, 2)))
        assert any(np.array_equal(pixels[y : y + CELL, left : left + CELL], expected) for y in places)
    with pytest.raises(DataError, match="no images to show"):
        draw_sheet([], [], [])
