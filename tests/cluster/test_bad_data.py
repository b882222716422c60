"""Bad data under Ray: left out up to the limit, else the end of the training at once, with one message."""

import pytest

from mgdet.cluster.train import run
from mgdet.data.shapes import ShapesConfig, generate_shapes
from mgdet.errors import CheckpointError, DataError
from tests.cluster.runs import experiment
from tests.data.damages import spoil
from tests.faults import step_records

pytestmark = pytest.mark.usefixtures("no_ray_left_behind")


@pytest.fixture
def data(tmp_path):
    root = tmp_path / "shapes"
    generate_shapes(str(root), ShapesConfig(train=12, val=3, size=64))
    return root


def of(tmp_path, shared, **changes):
    return experiment(tmp_path, "bad", **{"data__generate": None, "train__evaluate_every": 1, **shared, **changes})


@pytest.mark.slow
def test_a_bad_image_is_left_out_and_an_error_of_one_worker_ends_all_at_once(tmp_path, data, shared, caplog):
    """Rank 1 alone meets the bad image of the evaluated split, while rank 0 waits for its results."""
    spoil(data, "train", [4])
    spoil(data, "val", [2])
    e = of(tmp_path, shared, data__max_bad_images=1)
    with pytest.raises(DataError, match=r"image val/000002\.jpg .* An evaluation leaves out no image"):
        run(e)
    said = [record.getMessage() for record in caplog.records]
    assert sum("left out (1 of at most 1" in text for text in said) == 1
    assert not any("restart" in text for text in said)
    lines = step_records(tmp_path / "runs" / "bad" / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6], "an epoch, once"
    assert lines[-1]["metrics"]["train/bad_images"] == 1


@pytest.mark.exhaustive
def test_weights_that_cannot_be_loaded_are_not_tried_again(tmp_path, data, shared, caplog):
    weights = tmp_path / "weights.pt"
    weights.write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match=r"weights\.pt"):
        run(of(tmp_path, shared, model__weights=str(weights)))
    assert not any("restart" in record.getMessage() for record in caplog.records)


@pytest.mark.exhaustive
def test_one_image_more_than_the_limit_ends_all_workers(tmp_path, data, shared, caplog):
    spoil(data, "train", range(12))
    e = of(tmp_path, shared, data__max_bad_images=5)
    with pytest.raises(DataError, match=r"training split cannot be read, data\.max_bad_images allows 5"):
        run(e)
    assert not any("restart" in record.getMessage() for record in caplog.records)
