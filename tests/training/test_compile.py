"""`train.compile`: when it is on, what it needs, and that a compiled network learns what it would have learned."""

import logging

import pytest
import torch

from mgdet.config import load
from mgdet.data.transforms import TransformConfig
from mgdet.errors import ConfigError
from mgdet.runs.launch import prepare
from mgdet.runs.resolve import resolve
from mgdet.tracking import NullTracker
from mgdet.training.compile import RECOMPILE_LIMIT, compile_for_training, resolve_compile
from mgdet.training.distributed import World
from mgdet.training.loop import Worker
from tests.small import small_experiment

CPU = torch.device("cpu")


@pytest.fixture
def gpu(monkeypatch):
    """Calling it gives this machine a GPU of that compute capability."""

    def exchange(*capability):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)

    return exchange


def transform(**resize):
    return TransformConfig.model_validate({"resize": resize})


FIXED = transform(name="fixed", height=64, width=64)


@pytest.mark.parametrize(
    ("capability", "images", "expected", "why"),
    [
        ((8, 0), FIXED, "on", "few shapes"),
        ((6, 1), FIXED, "off", "Triton"),
        ((8, 0), transform(name="shortest_edge"), "off", "shortest_edge images have many shapes"),
    ],
)
def test_auto_on_a_gpu(gpu, capability, images, expected, why):
    gpu(*capability)
    found, reason = resolve_compile(images, gpu=True)
    assert found == expected
    assert why in reason


def test_auto_is_off_without_a_gpu_and_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    resolved, reasons = resolve(small_experiment(tmp_path, train__compile="auto"), num_images=6, cpus=1, gpus=0)
    assert resolved.train.compile == "off"
    assert any(line.startswith("train.compile = off (on a CPU") for line in reasons)
    assert "this machine has no GPU" in resolve_compile(FIXED, gpu=True)[1]


@pytest.mark.parametrize(
    ("text", "value"), [("on", "on"), ("off", "off"), ("true", "on"), ("no", "off"), ("auto",) * 2]
)
def test_on_and_off_may_be_truth_values(text, value):
    assert load("quickstart", [f"train.compile={text}"]).train.compile == value


def test_without_a_compiler_it_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"needs a C\+\+ compiler \(no-such-compiler\).*train\.compile=off"):
        compile_for_training(torch.nn.Identity(), FIXED, CPU)


def worker(directory, **changes):
    changes = {"train__precision": "fp32", "train__compile": "off", **changes}
    experiment, _ = prepare(small_experiment(directory, **changes), cpus=1, gpus=0)
    return Worker(experiment, World(0, 1, CPU), NullTracker())


@pytest.mark.slow
def test_a_compiled_network_learns_the_same_and_compiles_once_for_each_shape(tmp_path, monkeypatch, caplog):
    """Full batches, and the last one of an epoch; no more in a second epoch, nor in an evaluation."""
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")  # traces as for a compiler, and calls torch's own kernels
    monkeypatch.setattr("mgdet.training.loop.compile_for_training", lambda d, *_: d.compile_outputs(True, counter))
    compiled = worker(tmp_path / "on", train__compile="on", train__batch_size=4)
    eager = worker(tmp_path / "off", train__batch_size=4)
    with caplog.at_level(logging.INFO):
        compiled.run()
    assert "the network was compiled: the first step took" in caplog.text
    eager.run()
    assert counter.frame_count == 2
    for name, value in eager.detector.state_dict().items():
        torch.testing.assert_close(compiled.detector.state_dict()[name], value, rtol=1e-4, atol=1e-6)
    images, sizes = torch.zeros(2, 3, 64, 64, dtype=torch.uint8), torch.full((2, 2), 64)
    compiled.detector.load_state_dict(eager.detector.state_dict())
    with torch.no_grad():
        compiled.detector.eval(), eager.detector.eval()
        assert torch.equal(compiled.detector(images, sizes).logits, eager.detector(images, sizes).logits)


@pytest.mark.slow
def test_images_of_many_shapes_are_compiled_for_all_of_them(tmp_path):
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("eager")
    detector = worker(tmp_path).detector
    detector.compile_outputs(False, counter)
    for width in (64, 96, 128, 160, 192):
        predicted = detector(torch.zeros(2, 3, 64, width, dtype=torch.uint8), torch.tensor([[64, width]] * 2))
        assert predicted.logits.shape[1] == sum(predicted.priors.level_counts)
    assert counter.frame_count <= 3


@pytest.mark.exhaustive
def test_inductor_on_a_cpu(tmp_path):
    """The compiler itself, with g++."""
    changes = {"model__backbone": "resnet18", "train__epochs": 1}  # fewer kernels to compile than a MobileNet has
    compiled, eager = (worker(tmp_path / name, train__compile=name, **changes) for name in ("on", "off"))
    for each in (compiled, eager):
        each.run()
    assert torch._dynamo.config.recompile_limit == RECOMPILE_LIMIT
    for name, value in eager.detector.state_dict().items():
        torch.testing.assert_close(compiled.detector.state_dict()[name], value, rtol=1e-3, atol=1e-5)
