"""A data set that is not what its manifest says is refused by whatever reads it, with what, where and what to do."""

import pickle
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from mgdet.cli.main import main
from mgdet.data import ShapesConfig, ShardedDataset, build_train_loader, dataset, generate_shapes
from mgdet.data.dataset import UnreadableImage
from mgdet.data.loader import LoaderConfig
from mgdet.data.transforms import TransformConfig
from mgdet.data.writer import write_dataset
from mgdet.errors import DataError
from mgdet.inference.evaluate import evaluate_trained
from mgdet.inference.load import Trained
from mgdet.runs.launch import train_in_process
from mgdet.storage import Location
from mgdet.structures import Category
from tests.data.damages import DAMAGES, Damage, another, flip, forget_proofs, shard_of
from tests.data.test_dataset import records
from tests.small import small_experiment

SMALL = TransformConfig.model_validate({"resize": {"name": "fixed", "height": 64, "width": 64}})
each = pytest.mark.parametrize("damage", DAMAGES, ids=[d.name for d in DAMAGES])


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "_WAITS_S", (0.0, 0.0))


def read_all(data: ShardedDataset) -> list[bytes]:
    return [data.read_image(i) for i in range(len(data))]


def batches(data: ShardedDataset) -> list[list[int]]:
    """One epoch as a training reads it."""
    loader = build_train_loader(data, SMALL, LoaderConfig(workers=0), batch_size=2, seed=0)
    return [batch.image_ids.tolist() for batch in loader]


def says_what_where_and_what_to_do(error: DataError, damage: Damage, root: Path) -> None:
    said = str(error)
    assert str(root) in said
    assert "repare" in said or "mgdet prepare" in said
    assert "Traceback" not in said
    assert said.count("\n") == 0


@each
@pytest.mark.parametrize("split", ["train", "val"])
def test_it_is_refused_when_it_is_opened_or_read(root: Path, damage: Damage, split: str) -> None:
    damage.do(root, split)
    other = "val" if split == "train" else "train"
    try:
        data = ShardedDataset(str(root), split)
    except DataError as error:
        caught = error
    else:
        assert damage.seen_at != "opening"
        with pytest.raises(DataError) as info:
            batches(data)
        caught = info.value
    assert re.search(damage.says, str(caught))
    says_what_where_and_what_to_do(caught, damage, root)
    if damage.seen_at != "manifest":
        assert len(read_all(ShardedDataset(str(root), other))) in (6, 3)


@pytest.mark.slow
@each
def test_it_is_refused_in_the_middle_of_a_training(root: Path, damage: Damage) -> None:
    """That has opened the data set before: its annotations are those of before, and so must the images be."""
    data = ShardedDataset(str(root), "train")
    before = batches(data)
    data._reset_cache()
    damage.do(root, "train")
    if damage.seen_at == "manifest":
        assert batches(data) == before  # the shards are still the same
        with pytest.raises(DataError):  # a training asks at each epoch
            data.require_unchanged()
    elif damage.name == "a bit of the boxes is flipped":
        assert batches(data) == before  # they are not read again
    else:
        with pytest.raises(DataError) as caught:
            batches(data)
        says_what_where_and_what_to_do(caught.value, damage, root)


@pytest.fixture(scope="module")
def detector(whole: Path) -> Trained:
    experiment = small_experiment(whole)
    torch.manual_seed(0)
    categories = ShardedDataset(str(whole), "val").categories
    network = experiment.model.build(len(categories)).eval()
    return Trained(network, experiment, categories, torch.device("cpu"), "step-00000001.pt", 1, 1, False, 1, 2, {})


@each
def test_an_evaluation_refuses_it(root: Path, damage: Damage, detector: Trained) -> None:
    damage.do(root, "val")
    with pytest.raises(DataError, match=damage.says) as caught:
        evaluate_trained(detector, str(root), "val")
    says_what_where_and_what_to_do(caught.value, damage, root)


def test_the_evaluation_of_the_whole_data_set(root: Path, detector: Trained) -> None:
    """So that the refusals above are not of something else."""
    assert evaluate_trained(detector, str(root), "val").images == 3


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> str:
    experiment = small_experiment(tmp_path_factory.mktemp("finished"), train__epochs=1)
    train_in_process(experiment)
    return experiment.run_uri


@pytest.mark.exhaustive
@each
def test_the_commands_end_with_2_and_a_sentence(
    root: Path, damage: Damage, finished: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage.do(root, "val")
    (tmp_path / "c.yaml").write_text(small_experiment(tmp_path, data__generate=None, train__epochs=1).to_yaml())
    for arguments in (["train", str(tmp_path / "c.yaml")], ["evaluate", finished, "--data", str(root)]):
        assert main(arguments) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert "Traceback" not in said


def test_a_data_set_of_an_earlier_version_has_no_checksums_and_is_read(root: Path) -> None:
    before = batches(ShardedDataset(str(root), "train"))
    forget_proofs(root, "train")
    data = ShardedDataset(str(root), "train")
    assert batches(data) == before
    data._reset_cache()
    another(root, "train")  # but that its shard is another one is seen all the same
    with pytest.raises(DataError, match="is no longer the file that it was when the data set was opened"):
        batches(data)


def test_a_data_set_that_is_prepared_again_under_a_reader(root: Path) -> None:
    """New images would meet the annotations of before."""
    data = ShardedDataset(str(root), "train")
    first = data.read_image(0)
    generate_shapes(str(root), ShapesConfig(train=6, val=3, size=64, seed=1), overwrite=True)
    assert data.read_image(0) == first  # from the cache
    for reader in (data, pickle.loads(pickle.dumps(data))):
        reader._reset_cache()
        with pytest.raises(DataError, match="was prepared again after it was opened") as caught:
            reader.read_image(0)
        assert not isinstance(caught.value, UnreadableImage), "no number of bad images allows this"
    with pytest.raises(DataError, match="prepared again"):
        data.require_unchanged()


def test_a_damaged_row_group_is_read_once_and_its_images_are_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = ShardedDataset(str(root), "train")
    flip(root, "train", "image")
    calls: list[int] = []
    read = ShardedDataset._images_of
    monkeypatch.setattr(ShardedDataset, "_images_of", lambda self, *a: calls.append(1) or read(self, *a))
    for position in range(6):
        with pytest.raises(UnreadableImage, match=r"Cannot read row group 0 of .*part-00000\.parquet: its checksum"):
            data.read_image(position)
    assert calls == [1]


def test_a_storage_that_fails_for_a_moment_is_tried_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, failures = ShardedDataset(str(root), "train"), [OSError(5, "Input/output error")] * 2
    open_input = Location.open_input

    def unreliable(self: Location) -> Any:
        if failures:
            raise failures.pop()
        return open_input(self)

    monkeypatch.setattr(Location, "open_input", unreliable)
    assert len(read_all(data)) == 6
    assert not failures
    failures += [OSError(5, "Input/output error")] * 3
    data._reset_cache()
    with pytest.raises(UnreadableImage, match="Input/output error"):
        data.read_image(0)


def test_the_annotations_that_are_read_are_those_that_were_written(tmp_path: Path) -> None:
    """As a slow reader of the file finds them, row by row."""
    generate_shapes(str(tmp_path / "s"), ShapesConfig(train=150, val=1, size=48))
    data = ShardedDataset(str(tmp_path / "s"), "train")
    rows = pq.read_table(shard_of(tmp_path / "s", "train"), partitioning=None).to_pylist()
    for i, row in enumerate(rows):
        found = data.annotation(i)
        assert (data.image_ids[i], data.file_name(i), *data.sizes[i]) == (
            *(row["image_id"], row["file_name"]),
            *(row["height"], row["width"]),
        )
        assert found.boxes.reshape(-1).tolist() == row["boxes"]
        assert (found.labels.tolist(), found.iscrowd.tolist()) == (row["labels"], row["iscrowd"])
        assert found.area.tolist() == row["area"]
        assert data.read_image(i) == row["image"]


@pytest.mark.parametrize("classes", [[], [Category(1, "a"), Category(1, "b")]], ids=["none", "an id twice"])
def test_no_data_set_is_written_that_would_be_refused(tmp_path: Path, classes: list[Category]) -> None:
    with pytest.raises(DataError, match="at least one class, and each an id of its own"):
        write_dataset(tmp_path / "x", {"t": records(2)}, name="x", categories=classes)
    assert not (tmp_path / "x").exists()
