"""BatchNorm cannot learn from a single value per channel: refused before the first step, with the arithmetic."""

import pytest

from mgdet.errors import ConfigError
from mgdet.runs.dry_run import dry_run
from mgdet.runs.launch import train_in_process
from mgdet.runs.resolve import resolve
from tests.small import small_experiment


def fixed(side):
    return {"name": "fixed", "height": side, "width": side}


def look(tmp_path, images, workers=0, side=32, model=None, resize=None, **changes):
    experiment = small_experiment(
        tmp_path,
        data__transform={"resize": resize or fixed(side)},
        cluster={"workers": workers, "gpu": False, "cpus_per_worker": 1},
        model={"name": "retinanet", "backbone": "resnet18", "channels": 32, **(model or {"norm": "bn"})},
        **changes,
    )
    return resolve(experiment, num_images=images, cpus=8, gpus=0)[0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"images": 7},
            "7 training images in batches of 2 for 1 worker leave 1 for the last one, of which some worker has 1",
        ),
        (
            {"images": 10, "workers": 2, "train__batch_size": 8},
            "10 training images in batches of 4 for 2 workers leave 2",
        ),
        ({"images": 10, "workers": 2}, "batches of 1 for 2 workers leave 2"),
        ({"images": 9, "train__batch_size": 4, "train__accumulate": 2}, "batches of 2 for 1 worker leave 1"),
        (
            {"images": 28, "workers": (2, 3), "train__batch_size": 12},
            "28 training images in batches of 4 for 3 workers leave 4",
        ),
    ],
    ids=["one worker", "two workers", "one image at a time", "accumulate", "some number of an elastic training"],
)
def test_a_last_batch_of_one_image_is_refused(tmp_path, options, said):
    with pytest.raises(ConfigError) as error:
        look(tmp_path, **options)
    for part in (said, "backbone.body.", "1 x 1 pixel where the input has 32 x 32", "model.norm=frozen_bn"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    "options",
    [
        {"images": 8},
        {"images": 7, "side": 64},
        {"images": 7, "model": {"norm": "gn"}},
        {"images": 7, "model": {"norm": "frozen_bn"}},
        {"images": 8, "workers": 2, "train__batch_size": 4},
    ],
    ids=["two images", "a larger map", "gn", "frozen_bn", "two for each"],
)
def test_what_can_be_learned_from_is_not_refused(tmp_path, options):
    look(tmp_path, **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model": {"norm": "gn", "fpn_norm": "bn"}, "side": 32}, "layer backbone.fpn.*Set model.fpn_norm=gn"),
        ({"model": {"norm": "gn", "head_norm": "bn"}, "side": 128}, "layer head.*128 x 128.*Set model.head_norm=gn"),
        ({"model": {"backbone": "mobilenet_v3_small"}}, "layer backbone.body.*Set model.norm=gn"),
        ({"resize": {"name": "longest_edge", "height": 30, "width": 64}}, "32 x 32"),
        ({"resize": {"name": "shortest_edge", "sizes": [32, 64]}}, "32 x 32"),
    ],
    ids=["pyramid", "head", "another backbone", "longest edge", "shortest edge"],
)
def test_every_layer_and_size_is_looked_at(tmp_path, options, said):
    with pytest.raises(ConfigError, match=said):
        look(tmp_path, images=7, **options)


@pytest.mark.slow
def test_the_dry_run_and_the_training_refuse(tmp_path):
    """Seven images of 32 pixels in batches of two."""
    experiment = small_experiment(
        tmp_path,
        data__transform={"resize": fixed(32)},
        data__generate={"train": 7, "val": 4, "size": 64},
        model__norm="bn",
    )
    for start in (dry_run, train_in_process):
        with pytest.raises(ConfigError, match=r"7 training images in batches of 2 for 1 worker leave 1"):
            start(experiment)
    assert not (tmp_path / "runs").exists(), "before anything is written"
