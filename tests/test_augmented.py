"""Test-time augmentation: what is found in all views of an image, once."""

import pytest
import torch

from mgdet.errors import DataError
from mgdet.inference.augmented import View, detect_in_views, views
from mgdet.inference.predict import detect
from tests.exporting.networks import MODELS, untrained
from tests.reference.suppression import kept


def test_words_become_views():
    assert views([]) == (View(),)
    assert views(["flip"]) == (View(), View(True))
    assert views(["flip", "scales", "0.75"]) == (
        *(View(), View(True), View(scale=0.75), View(True, 0.75), View(scale=1.25), View(True, 1.25)),
    )
    for bad in ("mirror", "0", "nan", "5", "-1"):
        with pytest.raises(DataError, match=r"allowed are flip, scales .* numbers from 0.1 to 4"):
            views([bad])


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_union_is_suppressed_and_a_mirrored_image_gives_mirrored_boxes(name, tmp_path):
    trained = untrained(tmp_path, name)
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in ((70, 50), (64, 90))]
    looked = views(["flip", "1.5"])
    found = detect_in_views(trained, images, looked)
    mirrored = detect_in_views(trained, [image.flip(-1) for image in images], looked)
    settings = trained.experiment.model.postprocess
    assert found.valid.sum(dim=1).tolist() == [settings.max_detections] * 2
    for i, image in enumerate(images):
        boxes, other = found.boxes[i], mirrored.boxes[i].clone()
        other[:, [0, 2]] = image.shape[-1] - other[:, [2, 0]]
        torch.testing.assert_close(mirrored.scores[i], found.scores[i], atol=1e-5, rtol=0)
        torch.testing.assert_close(other, boxes, atol=1e-2, rtol=0)
        assert kept(boxes[None], found.scores[i : i + 1], found.labels[i : i + 1], settings.nms_iou + 1e-4).all()
    plain = detect(trained, images)
    assert (found.scores[:, 0] >= plain.scores[:, 0] - 1e-5).all(), "the best of all views"
    assert detect_in_views(trained, images, views([])).scores.equal(plain.scores)
