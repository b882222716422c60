"""Background priors over crowds are ignored, after every assigner and whatever the crowds are."""

from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter

from mgdet.assign import AssignerConfig
from mgdet.assign.ignore import ignore_regions
from mgdet.runs.launch import prepare
from mgdet.structures import IGNORED, NEGATIVE, Assignment, Labels, Priors, Targets
from mgdet.tracking import NullTracker
from mgdet.training.distributed import World
from mgdet.training.loop import Worker
from mgdet.training.step import forward
from tests.data.scenes import Scene
from tests.reference.ignore import ignore_regions as reference
from tests.small import small_experiment
from tests.test_golden import problem


def random_case(seed: int, regions: int) -> tuple[Assignment, Priors, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    corners = torch.randint(0, 40, (60, 2), generator=g).float()
    boxes = torch.cat([corners, corners + torch.randint(1, 24, (60, 2), generator=g)], 1)
    start = torch.randint(-8, 50, (3, regions, 2), generator=g).float()
    crowds = torch.cat([start, start + torch.randint(-4, 40, (3, regions, 2), generator=g)], 2)
    cls, loc = (Labels(torch.randint(IGNORED, 3, (3, 60), generator=g), torch.rand(3, 60)) for _ in "ab")
    return Assignment(cls, loc), Priors(boxes, torch.full((60,), 8.0), (60,)), crowds


@pytest.mark.parametrize("overlap", [0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("regions", [1, 4])
def test_equals_the_reference(regions: int, overlap: float) -> None:
    for seed in range(5):
        assignment, priors, crowds = random_case(seed, regions)
        found = ignore_regions(assignment, priors, crowds, overlap)
        for ours, before in ((found.cls, assignment.cls), (found.loc, assignment.loc)):
            assert torch.equal(ours.gt_index, reference(before.gt_index, priors.boxes, crowds, overlap))
            assert ours.weight is before.weight


def test_without_regions_the_assignment_is_the_same_object() -> None:
    assignment, priors, crowds = random_case(0, 2)
    for regions, overlap in ((crowds[:, :0], 0.5), (crowds, 1.5)):
        assert ignore_regions(assignment, priors, regions, overlap) is assignment
    padding = torch.zeros(3, 2, 4)
    assert torch.equal(ignore_regions(assignment, priors, padding, 0.1).cls.gt_index, assignment.cls.gt_index)


@pytest.mark.parametrize("name", ["max_iou", "atss", "simota", "task_aligned", "mutual_guidance", "mutual_labeling"])
def test_no_assigner_leaves_background_in_a_crowd(name: str) -> None:
    predictions, targets = problem(False, "few")
    assigner = TypeAdapter(AssignerConfig).validate_python({"name": name})
    before = assigner(predictions, targets)
    everything = torch.tensor([-1e4, -1e4, 1e4, 1e4]).repeat(2, 1, 1)
    after = ignore_regions(before, predictions.priors, everything, 0.5)
    for old, new in ((before.cls, after.cls), (before.loc, after.loc)):
        assert not (new.gt_index == NEGATIVE).any()
        assert torch.equal(new.gt_index >= 0, old.gt_index >= 0)
        assert torch.equal(new.gt_index[new.gt_index >= 0], old.gt_index[old.gt_index >= 0])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["retinanet", "fcos"])
@pytest.mark.parametrize("crowds", ["all", "one", "none"])
def test_a_training_step_ignores_the_priors_over_crowds(tmp_path: Path, name: str, crowds: str) -> None:
    scene = Scene(tmp_path, width=64, height=64)
    for i, thing in enumerate(scene.annotations):
        thing["iscrowd"] = int(crowds == "all" or (crowds == "one" and i == 0))
    scene.prepare()
    model = {"name": name, "backbone": "resnet18", "norm": "gn", "channels": 32}
    if name == "retinanet":
        model["anchors"] = {"sizes": [8, 16, 32, 64, 128], "scales": 1}
    asked = small_experiment(
        tmp_path,
        model=model,
        data__uri=str(scene.out),
        data__generate=None,
        data__val_split="train",
        data__transform={"resize": {"name": "fixed", "height": 64, "width": 64}, "hflip": 0},
        train__batch_size=4,
    )
    experiment, _ = prepare(asked, 2, 0)
    worker = Worker(experiment, World(0, 1, torch.device("cpu")), NullTracker())
    worker.data.train_loader.start(0)
    batch = next(iter(worker.data.train_loader))
    labels = forward(worker.detector, worker.detector, batch, experiment, worker.world, 2.0).assignment.cls.gt_index
    assert (batch.targets.regions.shape[1] == 0) == (crowds == "none")
    assert int(batch.targets.valid.sum()) == {"all": 0, "one": 7, "none": 8}[crowds]
    if crowds != "none":
        priors = worker.detector(batch.images, batch.sizes).priors
        bare = torch.full_like(labels, NEGATIVE)
        over = reference(bare, priors.boxes, batch.targets.regions, 0.5) == IGNORED
        assert over.any()
        assert not (labels[over] == NEGATIVE).any()


def test_targets_of_an_image_keep_their_regions() -> None:
    targets = Targets(torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.int64), torch.zeros(2, 0) > 0)
    assert targets.regions.shape == (2, 0, 4)
    assert targets[0].regions.shape == (0, 4)
    regions = torch.rand(2, 3, 4)
    assert torch.equal(targets.replace(regions=regions)[1:].regions, regions[1:])
