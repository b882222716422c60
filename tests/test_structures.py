"""The batched values: moved, changed and indexed as a whole."""

import pytest
import torch

from mgdet.structures import (
    Assignment,
    Batch,
    Category,
    Detections,
    Labels,
    Predictions,
    PriorLayout,
    Priors,
    pad_targets,
    read_categories,
)

PRIORS = Priors(torch.arange(24.0).reshape(6, 4), torch.tensor([8.0, 8, 8, 8, 16, 16]), (4, 2), PriorLayout(True, 1))


def batch() -> Batch:
    targets = pad_targets(
        [torch.ones(2, 4), torch.zeros(0, 4), torch.ones(1, 4)], [torch.ones(2), torch.zeros(0), torch.ones(1)]
    )
    sizes = torch.tensor([[4, 4], [3, 2], [4, 1]])
    images = torch.arange(3 * 3 * 4 * 4, dtype=torch.uint8).reshape(3, 3, 4, 4)
    return Batch(images, sizes, sizes * 2, targets, torch.tensor([7, 9, 11]), torch.arange(3))


def predictions(quality: bool = True) -> Predictions:
    values = torch.arange(3 * 6 * 4, dtype=torch.float64).reshape(3, 6, 4).requires_grad_()
    return Predictions(PRIORS, values[..., :2], values, values * 2, values[..., 0] if quality else None)


@pytest.mark.parametrize("images", [slice(1, 3), torch.tensor([2, 0]), torch.tensor([True, False, True])], ids=str)
def test_an_index_chooses_images_in_every_field(images):
    whole = batch()
    part = whole[images]
    assert type(part) is Batch
    for name, value in part.fields().items():
        if name != "targets":
            assert torch.equal(value, getattr(whole, name)[images])
    for name, value in part.targets.fields().items():
        assert torch.equal(value, getattr(whole.targets, name)[images])


def test_an_integer_drops_the_batch_dimension():
    zeros = torch.zeros(2, 5)
    found = Detections(torch.zeros(2, 5, 4), torch.arange(10.0).reshape(2, 5), zeros, zeros == 0, zeros)
    assert found[1].boxes.shape == (5, 4)
    assert found[1].scores.tolist() == [5.0, 6, 7, 8, 9]
    with pytest.raises(IndexError):
        found[2]


def test_nested_values_are_chosen_too():
    labels = Labels(torch.arange(6).reshape(2, 3), torch.ones(2, 3))
    part = Assignment(labels, labels.map(lambda t: t * 2))[1:]
    assert part.cls.gt_index.tolist() == [[3, 4, 5]]
    assert part.loc.gt_index.tolist() == [[6, 8, 10]]


def test_the_priors_belong_to_all_images():
    part = predictions()[1:2]
    assert part.priors is PRIORS
    assert part.logits.shape == (1, 6, 2)


def test_priors_are_indexed_by_level():
    assert torch.equal(PRIORS[0].boxes, PRIORS.boxes[:4])
    assert torch.equal(PRIORS[1].boxes, PRIORS.boxes[4:])
    assert torch.equal(PRIORS[-1].boxes, PRIORS.boxes[4:])
    assert PRIORS[1].level_counts == (2,)
    assert PRIORS[1].strides.tolist() == [16.0, 16.0]
    assert PRIORS[1].layout == PRIORS.layout
    with pytest.raises(IndexError):
        PRIORS[2]


@pytest.mark.parametrize("quality", [True, False])
def test_detached_values_are_single_precision_without_a_graph(quality):
    value = predictions(quality)
    found = value.detach()
    for name in ("logits", "deltas", "boxes"):
        assert getattr(found, name).dtype == torch.float32
        assert not getattr(found, name).requires_grad
    assert (found.quality is None) == (not quality)
    assert value.boxes.requires_grad, "the original is left alone"


def test_a_value_moves_whole():
    there = predictions().to("meta")
    tensors = [there.priors.boxes, there.priors.strides, there.logits, there.deltas, there.boxes, there.quality]
    assert all(t.device.type == "meta" for t in tensors)
    assert there.priors.layout == PRIORS.layout
    assert batch().to("meta").targets.valid.device.type == "meta"
    assert batch().cpu().images.device.type == "cpu"


def test_fields_and_images_are_not_confused():
    with pytest.raises(TypeError, match="not iterable"):
        list(batch())
    with pytest.raises(TypeError):
        _, _ = Assignment(Labels(torch.zeros(2, 3), torch.zeros(2, 3)), Labels(torch.zeros(2, 3), torch.zeros(2, 3)))


def test_the_classes_of_a_checkpoint():
    assert read_categories('[[7, "a"], [1, "b"]]') == (Category(7, "a"), Category(1, "b"))
    assert read_categories("[]") == ()


@pytest.mark.parametrize(
    "text",
    [
        *(None, 3, "", "{", "{}", "3", "[1]", "[[1]]", '[[1.9, "a"]]', '[[true, "a"]]', "[[1, 2]]", '[[1, "a", 2]]'),
        *('["ab"]', 10_000 * "[", 5_000 * "9"),
    ],
    ids=lambda text: str(text)[:12],
)
def test_what_no_checkpoint_says_of_its_classes(text):
    with pytest.raises(ValueError):  # noqa: PT011  # whoever reads them words it
        read_categories(text)
