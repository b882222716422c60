"""What a detector costs, measured by its evaluation where that is asked for."""

import time

import pytest
import torch

from mgdet.cluster.train import run
from mgdet.training.cost import ROUNDS, WARM_UP, cost_of
from tests.faults import same, weights
from tests.small import small_experiment

CPU = torch.device("cpu")


def test_it_is_the_median_time_of_one_image_from_pixels_to_detections(tmp_path, monkeypatch):
    network = small_experiment(tmp_path).model.build(3).eval()
    images = [torch.zeros(3, 30, 64, dtype=torch.uint8), torch.zeros(3, 64, 33, dtype=torch.uint8)]
    seen, waits = [], []
    detect = network.detect

    def slow(predictions, sizes, original_sizes):
        seen.append((predictions.priors.boxes[:, 2:].amax(dim=0).tolist(), sizes.tolist()))
        time.sleep(0.02)
        return detect(predictions, sizes, original_sizes)

    monkeypatch.setattr(network, "detect", slow)
    found = cost_of(network, images, CPU, "fp32", lambda: waits.append(1))
    assert 20 <= found["val/latency_ms"] < 2000
    assert found["val/parameters"] == sum(p.numel() for p in network.parameters())
    assert len(seen) == WARM_UP + ROUNDS
    assert len(waits) == 2 * len(seen)
    assert [sizes for _, sizes in seen[:3]] == [[[30, 64]], [[64, 33]], [[30, 64]]]


def test_without_an_image_there_is_no_time(tmp_path):
    network = small_experiment(tmp_path).model.build(3).eval()
    assert cost_of(network, [], CPU, "fp32", lambda: None).keys() == {"val/parameters"}


@pytest.mark.slow
def test_a_training_that_measures_it_learns_the_same(tmp_path):
    plain, measured = small_experiment(tmp_path), small_experiment(tmp_path, name="cost", evaluation__cost=True)
    without, found = run(plain)[0].metrics, run(measured)[0].metrics
    assert found.keys() - without.keys() == {"val/latency_ms", "val/parameters"}
    assert {key: found[key] for key in without} == without
    assert same(weights(plain), weights(measured))
