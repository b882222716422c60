"""Augmentations: each agrees with a loop, keeps boxes on their pixels and in the frame, and is repeatable."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError, create_model
from torchvision import tv_tensors
from torchvision.transforms import v2

from mgdet.data import ShapesConfig, ShardedDataset, build_train_loader, generate_shapes
from mgdet.data.augment import CROWD, AugmentConfig, Draw, Picture
from mgdet.data.augment.copy_paste import CopyPaste, covered
from mgdet.data.augment.crop import Crop, candidates, cut
from mgdet.data.augment.expand import Expand
from mgdet.data.augment.mixup import Mixup
from mgdet.data.augment.mosaic import Mosaic
from mgdet.data.augment.photometric import Photometric
from mgdet.data.augment.rotate import Rotate, turned
from mgdet.data.loader import LoaderConfig, TrainImages
from mgdet.data.order import Neighbours, SampleKey, Segment, TrainBatches, epoch_order
from mgdet.data.transforms import TrainTransform, TransformConfig, seeded
from tests.data.test_loader import same
from tests.reference import augment as loops

ALWAYS = {"probability": 1.0}
EVERY = {
    "copy_paste": CopyPaste(**ALWAYS),
    "mosaic": Mosaic(**ALWAYS),
    "mixup": Mixup(**ALWAYS),
    "photometric": Photometric(**ALWAYS),
    "expand": Expand(**ALWAYS),
    "crop": Crop(**ALWAYS),
    "rotate": Rotate(**ALWAYS),
}


def random_picture(seed, height=18, width=24, count=3):
    """Noise with boxes, the last of which is a crowd; all pixels differ from most others."""
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, [width - 6, height - 6], (count, 2))
    high = low + rng.uniform(3, 6, (count, 2))
    labels = torch.arange(count)
    labels[-1:] = CROWD
    image = torch.from_numpy(rng.integers(0, 256, (3, height, width), dtype=np.uint8))
    return Picture(image, torch.from_numpy(np.concatenate([low, high], 1)).float(), labels)


def draw(seed, other=None):
    return Draw(np.random.default_rng(seed), lambda rng: other)


def image_is(picture, expected, tolerance=0):
    height, width = picture.size
    assert expected.keys() == {(x, y) for y in range(height) for x in range(width)}
    found = np.array([picture.image[:, y, x].tolist() for x, y in expected])
    assert np.abs(found - np.array(list(expected.values()))).max() <= tolerance


# --- each against its loop


@pytest.mark.parametrize("seed", range(4))
def test_expand_is_its_loop(seed):
    picture = random_picture(seed)
    out = Expand(most=1.6).change(picture, draw(seed))
    rng = np.random.default_rng(seed)
    ratio = rng.uniform(1, 1.6)
    height, width = int(18 * ratio), int(24 * ratio)
    y, x = (int(rng.integers(n)) for n in (height - 18 + 1, width - 24 + 1))
    image, boxes = loops.expand(picture.image, picture.boxes.tolist(), x, y, height, width)
    image_is(out, image)
    torch.testing.assert_close(out.boxes, torch.tensor(boxes))


@pytest.mark.parametrize("quarters", range(5))
def test_rotate_is_repeated_quarter_turns(quarters):
    picture = random_picture(1)
    expected = picture
    for _ in range(quarters):
        image, boxes = loops.quarter_turn(expected.image, expected.boxes.tolist())
        once = turned(expected, 1)
        image_is(once, image)
        torch.testing.assert_close(once.boxes, torch.tensor(boxes))
        expected = once
    out = turned(picture, quarters)
    assert torch.equal(out.image, expected.image)
    torch.testing.assert_close(out.boxes, expected.boxes)


@pytest.mark.parametrize("overlap", [0.0, 0.05, 0.3, 0.9])
@pytest.mark.parametrize("seed", range(3))
def test_crop_is_its_loop(seed, overlap):
    picture = random_picture(seed, count=3)
    labels = picture.labels.tolist()
    out = Crop(overlaps=(overlap,)).change(picture, draw(seed))
    rng = np.random.default_rng(seed)
    rng.integers(1)
    tried = candidates(rng, 18, 24, 0.3).int().tolist()
    part = loops.fitting_part(tried, picture.boxes.tolist(), labels, overlap)
    if part is None:
        assert out is picture
        return
    image, kept = loops.crop(picture.image, picture.boxes.tolist(), labels, part)
    image_is(out, image)
    torch.testing.assert_close(out.boxes, torch.tensor([box for box, _ in kept]))
    assert out.labels.tolist() == [label for _, label in kept]


@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(1, 60), st.floats(0.01, 1))
def test_parts_are_whole_pixels_of_the_picture_and_not_thin(seed, height, width, least):
    for x1, y1, x2, y2 in candidates(np.random.default_rng(seed), height, width, least).tolist():
        assert (x1, y1) == (int(x1), int(y1))
        assert 0 <= x1 < x2 <= width
        assert 0 <= y1 < y2 <= height
        w, h = x2 - x1, y2 - y1
        assert (w, h) == (width, height) or max(w, h) <= 2 * min(w, h)


def test_crowds_are_cut_and_objects_go_by_their_centre():
    picture = Picture(
        torch.zeros(3, 20, 20, dtype=torch.uint8),
        torch.tensor([[0.0, 0, 8, 8], [6, 6, 20, 20], [4, 4, 12, 12], [0, 0, 5, 5]]),
        torch.tensor([1, CROWD, 2, CROWD]),
    )
    out = cut(picture, torch.tensor([5.0, 5, 20, 20]))
    assert out.labels.tolist() == [CROWD, 2]  # the first object's centre and the second crowd are outside
    assert out.boxes.tolist() == [[1, 1, 15, 15], [0, 0, 7, 7]]


@pytest.mark.parametrize("sizes", [(18, 24), (10, 30)])
def test_mixup_is_its_loop(sizes):
    first, second = random_picture(0), random_picture(1, *sizes)
    out = Mixup(alpha=2).change(first, draw(3, second))
    share = np.random.default_rng(3).beta(2, 2)
    image_is(out, loops.mixup(first.image, second.image, share), tolerance=1)
    assert torch.equal(out.boxes, torch.cat([first.boxes, second.boxes]))
    assert torch.equal(out.labels, torch.cat([first.labels, second.labels]))


@pytest.mark.parametrize("part", ["brightness", "contrast", "saturation", "hue"])
def test_photometric_is_its_loop(part):
    picture = random_picture(5, 6, 7)
    strengths = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    out = Photometric(probability=1, **strengths | {part: 0.4}).change(picture, draw(7))
    rng = np.random.default_rng(7)
    amounts = {}
    for name in strengths:
        low, high = (-0.4, 0.4) if name == part == "hue" else (0.6, 1.4) if name == part else (1, 1)
        amounts[name] = rng.uniform(low, high)
    expected = getattr(loops, part)(loops.pixels(picture.image), amounts[part])
    image_is(out, expected, tolerance=2)
    assert not torch.equal(out.image, picture.image)
    assert out.boxes is picture.boxes


def test_mosaic_puts_four_pictures_around_a_point():
    """At the size of the canvas and without a margin: whole pixels of each, in the quarter that the loop says."""
    own, other = random_picture(0), random_picture(1)
    out = Mosaic(low=1, high=1, margin=0.25, visible=0).change(own, draw(11, other))
    rng = np.random.default_rng(11)
    x, y = (round(side * rng.uniform(0.25, 0.75)) for side in (24, 18))
    mine = int(rng.integers(4))
    pictures = [own if q == mine else other for q in range(4)]
    corners = loops.mosaic_quarters(x, y, [p.size for p in pictures])
    expected, boxes = loops.blank(18, 24), []
    for picture, (left, upper) in zip(pictures, corners, strict=True):
        inside = {(px + left, py + upper): c for (px, py), c in loops.pixels(picture.image).items()}
        expected.update({place: c for place, c in inside.items() if place in expected})
        for x1, y1, x2, y2 in picture.boxes.tolist():
            box = [max(0, x1 + left), max(0, y1 + upper), min(24, x2 + left), min(18, y2 + upper)]
            if box[2] > box[0] and box[3] > box[1]:
                boxes.append(box)
    image_is(out, expected)
    torch.testing.assert_close(out.boxes, torch.tensor(boxes))


def test_mosaic_leaves_out_what_is_hardly_visible_but_no_crowd():
    picture = Picture(
        torch.zeros(3, 20, 20, dtype=torch.uint8),
        torch.tensor([[0.0, 0, 20, 20], [0, 0, 20, 20]]),
        torch.tensor([3, CROWD]),
    )
    config = {"low": 1, "high": 1, "margin": 0.5}  # a quarter of each is visible
    shown = Mosaic(visible=0.25, **config).change(picture, draw(0, picture))
    hidden = Mosaic(visible=0.26, **config).change(picture, draw(0, picture))
    assert shown.labels.tolist() == [3, CROWD] * 4
    assert hidden.labels.tolist() == [CROWD] * 4
    assert hidden.boxes.tolist() == [[0, 0, 10, 10], [10, 0, 20, 10], [0, 10, 10, 20], [10, 10, 20, 20]]


@pytest.mark.parametrize("seed", range(6))
def test_copy_paste_brings_an_object_with_its_pixels_and_covers_little(seed):
    picture, other = random_picture(seed), random_picture(seed + 100)
    out = CopyPaste(most=2, covered=0.2).change(picture, draw(seed, other))
    added = len(out.boxes) - len(picture.boxes)
    assert torch.equal(out.boxes[:3], picture.boxes)
    assert added <= 2
    patches = []
    for box, label in zip(out.boxes[3:], out.labels[3:], strict=True):
        source = other.boxes[int(label)]  # a label is the row here; the crowd is never pasted
        x, y = (box - source)[:2].round().int().tolist()
        x1, y1, x2, y2 = [*source[:2].floor().int().tolist(), *source[2:].ceil().int().tolist()]
        patches.append(torch.tensor([x + x1, y + y1, x + x2, y + y2]).float())
        if len(patches) == added:  # nothing lies on the last one
            pasted = out.image[:, y + y1 : y + y2, x + x1 : x + x2]
            assert torch.equal(pasted, other.image[:, y1:y2, x1:x2])
        assert (covered(out.boxes[: 2 + len(patches)], patches[-1]) <= 0.2).all()
    untouched = torch.ones(18, 24, dtype=torch.bool)
    for patch in patches:
        x1, y1, x2, y2 = patch.int().tolist()
        untouched[y1:y2, x1:x2] = False
    assert torch.equal(out.image[:, untouched], picture.image[:, untouched])


# --- properties of all


@given(st.integers(0, 10**6), st.sampled_from(sorted(EVERY)), st.integers(0, 4), st.integers(8, 40), st.integers(8, 40))
def test_boxes_stay_in_the_frame_and_inputs_as_they_are(seed, name, count, height, width):
    picture, other = random_picture(seed, height, width, count), random_picture(seed + 1)
    before = [t.clone() for t in (*picture, *other)]
    out = EVERY[name].change(picture, draw(seed, other))
    assert all(torch.equal(a, b) for a, b in zip(before, (*picture, *other), strict=True))
    assert out.image.dtype == torch.uint8
    assert out.boxes.dtype == torch.float32
    assert len(out.boxes) == len(out.labels)
    limits = torch.tensor([out.image.shape[2], out.image.shape[1]] * 2)
    assert (out.boxes >= 0).all()
    assert (out.boxes <= limits).all()
    assert (out.boxes[:, 2:] > out.boxes[:, :2]).all()


@given(st.integers(0, 10**6), st.sampled_from(["expand", "crop", "copy_paste"]))
def test_the_pixel_under_a_corner_is_the_same_pixel(seed, name):
    picture = random_picture(seed)
    out = EVERY[name].change(picture, draw(seed, random_picture(seed + 1)))
    whole = {int(label): box for box, label in zip(picture.boxes, picture.labels, strict=True)}
    for box, label in list(zip(out.boxes, out.labels, strict=True))[: len(picture.boxes)]:
        before = whole[int(label)]
        cut_off = (box[2:] - box[:2] < before[2:] - before[:2] - 1e-3).any()
        if cut_off or name == "copy_paste":  # what was pasted may lie on a corner
            continue
        x, y = (before[:2].floor().int()).tolist()
        u, v = ((box[:2] + (before[:2].floor() - before[:2])).round().int()).tolist()
        assert torch.equal(out.image[:, v, u], picture.image[:, y, x])


@pytest.mark.parametrize("name", sorted(EVERY))
def test_nothing_changes_at_strength_0(name):
    picture = random_picture(3)
    config = AugmentConfig.model_validate({name: {"probability": 0}})
    out = config(picture, seed=0, epoch=0, position=0)
    assert all(torch.equal(a, b) for a, b in zip(out, picture, strict=True))


@pytest.mark.parametrize(
    "weak", [Expand(most=1), Crop(least=1), Photometric(**ALWAYS, brightness=0, contrast=0, saturation=0, hue=0)]
)
def test_the_weakest_strength_is_the_identity(weak):
    picture = random_picture(3)
    out = weak.change(picture, draw(0))
    assert torch.equal(out.image, picture.image)
    torch.testing.assert_close(out.boxes, picture.boxes)


def test_each_is_drawn_from_seed_epoch_position_and_its_own_name_alone():
    picture, other = random_picture(0), random_picture(1)
    numbers = {"seed": 5, "epoch": 2, "position": 7}

    def turned_by(**changes):
        config = AugmentConfig(rotate=Rotate(**ALWAYS), **changes.pop("beside", {}))
        return config(picture, **numbers | changes, other=lambda rng: other)

    assert torch.equal(turned_by().image, turned_by().image)
    assert len({turned_by(**{key: n}).image.numpy().tobytes() for key in numbers for n in range(20)}) == 3
    beside = {"photometric": Photometric(**ALWAYS)}  # draws, and moves nothing
    assert torch.equal(turned_by(beside=beside).boxes, turned_by().boxes)


def test_pictures_are_no_longer_mixed_in_the_closing_epochs():
    picture, other = random_picture(0), random_picture(1)
    config = AugmentConfig(mosaic=Mosaic(**ALWAYS, closing_epochs=2), mixup=Mixup(**ALWAYS, closing_epochs=0))
    numbers = {"seed": 0, "position": 0, "other": lambda rng: other}
    boxes = [len(config(picture, epoch=epoch, epochs=5, **numbers).boxes) for epoch in range(5)]
    assert boxes[3:] == [6, 6]  # mixup goes on
    assert min(boxes[:3]) > 6
    assert len(config(picture, epoch=4, epochs=None, **numbers).boxes) > 6


def test_what_a_plugin_has_added_reaches_the_loaders_processes():
    """The class with its field is made at run time, so that pickle finds it nowhere."""
    grown = create_model("AugmentConfig", __base__=AugmentConfig, mine=(Rotate | None, None))
    config = grown(mine=Rotate(**ALWAYS), expand=Expand(**ALWAYS))
    there, picture = pickle.loads(pickle.dumps(config)), random_picture(0)
    one, other = (each(picture, seed=0, epoch=0, position=1) for each in (config, there))
    assert torch.equal(one.image, other.image)
    assert torch.equal(one.boxes, other.boxes)
    without = AugmentConfig(expand=config.expand)(picture, seed=0, epoch=0, position=1)
    assert not torch.equal(one.boxes, without.boxes)


# --- with the transform, the order and the loader


def test_without_augmentation_a_sample_is_what_it_was():
    """The steps of mgdet before there were augmentations, with the same random numbers."""
    config = TransformConfig.model_validate(
        {"resize": {"name": "fixed", "height": 20, "width": 30}, "vflip": 0.5, "color": {"hue": 0.1}}
    )
    steps = v2.Compose(
        [
            v2.Resize((20, 30), antialias=True),
            v2.RandomHorizontalFlip(0.5),
            v2.RandomVerticalFlip(0.5),
            v2.ColorJitter(0.2, 0.2, 0.2, 0.1),
        ]
    )
    picture = random_picture(0, 40, 50)
    for position in range(4):
        out = TrainTransform(config, 3)(*picture, epoch=1, position=position)
        with seeded(3, 1, position):
            boxes = tv_tensors.BoundingBoxes(picture.boxes, format="XYXY", canvas_size=(40, 50))
            image, boxes = steps(tv_tensors.Image(picture.image), boxes)
        assert torch.equal(out.image, image.as_subclass(torch.Tensor))
        kept = ((boxes[:, 2:] - boxes[:, :2]) >= 1).all(dim=1)
        assert torch.equal(out.boxes, boxes.as_subclass(torch.Tensor)[kept])


@given(st.lists(st.integers(1, 5), min_size=1, max_size=12), st.integers(0, 99), st.integers(1, 4))
def test_neighbours_are_the_rows_of_the_window(sizes, epoch, window):
    neighbours, total = Neighbours(sizes, 3, window), sum(sizes)
    order = epoch_order(sizes, 3, epoch, window).tolist()
    groups = np.random.default_rng([3, epoch]).permutation(len(sizes))
    ends = np.cumsum([sum(sizes[g] for g in groups[i : i + window]) for i in range(0, len(sizes), window)])
    for position in range(total):
        place = int(np.searchsorted(ends, order.index(position), side="right"))
        rows = set(order[(0 if place == 0 else ends[place - 1]) : ends[place]])
        assert set(neighbours.of(epoch, position).tolist()) == (rows - {position} or {position})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    uri = str(tmp_path_factory.mktemp("augment") / "shapes")
    generate_shapes(uri, ShapesConfig(train=16, val=1, size=48))
    return ShardedDataset(uri, "train")


ALL = TransformConfig.model_validate(
    {
        "resize": {"name": "fixed", "height": 64, "width": 64},
        "augment": {name: {} for name in EVERY},
        "multi_scale": {"factors": [0.5, 1.0, 1.5]},
        "interpolation": {},
    }
)


def batches(data, epoch=1, step=0, done=(), workers=0, **options):
    loader = build_train_loader(
        data, ALL, LoaderConfig(workers=workers), **{"batch_size": 2, "seed": 7, "epochs": 9} | options
    )
    loader.start(epoch, step, done)
    return list(loader)


def test_the_same_batches_wherever_a_training_starts(data):
    whole = batches(data)
    assert same(batches(data, step=3), whole[3:])
    assert {tuple(b.images.shape[2:]) for b in whole} <= {(32, 32), (64, 64), (96, 96)}
    assert len({b.images.shape for b in whole}) > 1


@pytest.mark.slow
def test_the_same_batches_for_any_number_of_processes(data):
    assert same(batches(data, workers=2), batches(data))


def test_all_ranks_have_one_size_at_a_step(data):
    ranks = [batches(data, world=2, rank=rank) for rank in range(2)]
    for mine, others in zip(*ranks, strict=True):
        assert mine.images.shape == others.images.shape


def test_an_epoch_that_goes_on_with_other_ranks_draws_new_sizes():
    sampler = TrainBatches([16], batch_size=2, seed=7, world=2, rank=0)
    sampler.start(0, done=[Segment(1, 2, 3)])
    assert [batch[0].step for batch in sampler] == [3, 4, 5]


def test_another_picture_that_cannot_be_read_is_the_picture_itself(data, monkeypatch):
    images = TrainImages(data, ALL, 7)
    read = data.read_image
    monkeypatch.setattr(data, "read_image", lambda row: read(row) if row == 5 else b"nothing")
    sample = images[SampleKey(0, 5)]
    assert sample.data.image.dtype == torch.uint8
    assert sample.position == 5


@pytest.mark.parametrize(
    "wrong",
    [
        {"augment": {"mosiac": {}}},
        {"augment": {"crop": {"overlaps": []}}},
        {"augment": {"mosaic": {"low": 1, "high": 0.5}}},
        {"multi_scale": {}, "resize": {"name": "shortest_edge"}},
        {"multi_scale": {"factors": []}},
        {"multi_scale": {}, "resize": {"name": "longest_edge", "height": 64, "width": 64}},
        {"interpolation": {"methods": ["lanczos"]}},
    ],
)
def test_wrong_configuration(wrong):
    with pytest.raises(ValidationError):
        TransformConfig.model_validate(wrong)


def test_what_is_known_of_sizes_holds_for_all_factors():
    config = TransformConfig.model_validate(
        {"resize": {"name": "fixed", "height": 320, "width": 640}, "multi_scale": {"factors": [0.5, 1.5, 1.0]}}
    )
    assert config.bounds() == (480, 960)
    assert config.smallest() == (160, 320)
    assert config.largest_input(100, 100) == (480, 960)
