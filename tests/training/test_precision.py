"""`train.precision`: what `auto` chooses and why, that a run keeps it, and fp16 with its gradient scaler."""

import json
import logging

import pytest
import torch

from mgdet.errors import ConfigError, NonFiniteError
from mgdet.records import seal, unseal
from mgdet.runs import resolve as resolving
from mgdet.runs.launch import prepare
from mgdet.runs.record import begun_with, open_run, save_run
from mgdet.runs.resolve import resolve
from mgdet.tracking import NullTracker
from mgdet.training import evaluate, precision, step
from mgdet.training.distributed import World
from mgdet.training.loop import Worker
from mgdet.training.precision import Hardware, autocast, emulation, hardware, resolve_precision
from mgdet.training.step import StepSums
from tests.small import small_experiment

CPU = torch.device("cpu")
PLAIN, WITH_BF16 = Hardware("the CPU", False, False), Hardware("the CPU (amx_bf16)", True, False)
TURING = Hardware("Tesla T4 (compute capability 7.5)", False, True)


@pytest.fixture
def on(monkeypatch):
    """Calling it exchanges the hardware."""

    def exchange(found):
        for module in (precision, resolving):
            monkeypatch.setattr(module, "hardware", lambda device: found)

    return exchange


@pytest.fixture
def flags(monkeypatch):
    """Calling it exchanges the instructions of the CPU, and whether oneDNN may use them."""

    def exchange(*names, allowed=True):
        monkeypatch.setattr(precision, "_cpu_flags", lambda: frozenset(names))
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: allowed)

    return exchange


# --- what auto chooses


@pytest.mark.parametrize(
    ("found", "allowed", "expected"),
    [
        (("avx2", "avx512f", "avx512_bf16"), True, "bf16"),
        (("avx2", "avx512_bf16", "amx_bf16"), True, "bf16"),
        (("asimd", "bf16"), True, "bf16"),
        (("avx2",), True, "fp32"),
        (("avx2", "avx512f"), True, "fp32"),
        (("avx512_bf16", "amx_bf16"), False, "fp32"),
        ((), True, "fp32"),
    ],
    ids=["avx512_bf16", "amx", "arm", "avx2", "avx512 without bf16", "forbidden to oneDNN", "no list"],
)
def test_a_cpu_computes_in_bf16_if_it_has_instructions_for_it(flags, found, allowed, expected):
    flags(*found, allowed=allowed)
    assert resolve_precision("auto", CPU) == expected
    assert hardware(CPU).why() == (
        f"the CPU ({'amx_bf16' if 'amx_bf16' in found else found[-1]}) has instructions for bf16"
        if expected == "bf16"
        else "the CPU has none for bf16"
    )
    assert resolve_precision("fp16", CPU) == "fp16", "what is asked for stays"


@pytest.mark.parametrize(
    ("capability", "bf16", "expected"),
    [
        ((9, 0), True, "bf16"),
        ((8, 0), True, "bf16"),
        ((7, 5), False, "fp16"),
        ((7, 0), False, "fp16"),
        ((6, 1), False, "fp32"),
    ],
)
def test_a_gpu_computes_in_what_its_capability_has(monkeypatch, capability, bf16, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16 or including_emulation)
    found = hardware(torch.device("cuda"))
    assert found.best == expected
    assert f"compute capability {capability[0]}.{capability[1]}" in found.why()


def test_the_choice_is_printed_with_its_reason(tmp_path, on):
    for found, expected in ((PLAIN, "fp32"), (WITH_BF16, "bf16")):
        on(found)
        experiment = small_experiment(tmp_path, train__precision="auto")
        resolved, reasons = resolve(experiment, num_images=6, cpus=1, gpus=0)
        assert resolved.train.precision == expected
        assert f"train.precision = {expected} ({found.why()})" in reasons


def test_a_driver_without_the_gpus_of_its_workers_does_not_guess(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    experiment = small_experiment(tmp_path, train__precision="auto", cluster={"workers": 1})
    resolved, reasons = resolve(experiment, num_images=6, cpus=8, gpus=1)
    assert resolved.train.precision == "fp32"
    assert any("this machine has no GPU that would show what those of the workers can" in r for r in reasons)


# --- a run keeps it


def begun(tmp_path, asked, resolved):
    """The record of a run that has a checkpoint."""
    experiment = small_experiment(tmp_path, train__precision=asked)
    train = experiment.train.model_copy(update={"precision": resolved})
    save_run(experiment, experiment.model_copy(update={"train": train}), {})
    checkpoints = tmp_path / "runs" / "small" / "checkpoints"
    checkpoints.mkdir()
    info = {"file": "step-00000003.pt", "step": 3, "epoch": 1, "size": 1, "sha256": 64 * "0", "metrics": {}}
    (checkpoints / "step-00000003.json").write_text(json.dumps(info))


def test_a_run_goes_on_in_its_precision_on_other_hardware(tmp_path, on):
    begun(tmp_path, "auto", "bf16")
    on(PLAIN)
    asked = small_experiment(tmp_path, train__precision="auto")
    resolved, reasons = prepare(asked, cpus=1, gpus=0)
    assert resolved.train.precision == "bf16"
    assert "train.precision = bf16 (the run began with it)" in reasons
    assert open_run(asked) is not None
    assert open_run(small_experiment(tmp_path, train__precision="bf16")) is not None, "the same by its name"
    with pytest.raises(ConfigError, match=r"train\.precision: 'bf16' there, 'fp32' asked for"):
        open_run(small_experiment(tmp_path, train__precision="fp32"))


@pytest.mark.parametrize("newer", [["train.compile"], ["train.compile", "model.quality", "train.ema.warmup"]])
def test_a_run_of_a_version_without_some_keys_goes_on(tmp_path, newer):
    """With their defaults, which are what that version did; anything else is another experiment."""
    begun(tmp_path, "fp32", "fp32")
    file = tmp_path / "runs" / "small" / "run.json"
    record = unseal(file.read_bytes())
    record["learned"] = {key: value for key, value in record["learned"].items() if key not in newer}
    file.write_bytes(seal(record))
    assert open_run(small_experiment(tmp_path)) is not None
    assert open_run(small_experiment(tmp_path, train__compile="auto")) is not None
    with pytest.raises(ConfigError, match=r"train\.compile: 'off' there, 'on' asked for"):
        open_run(small_experiment(tmp_path, train__compile="on"))
    with pytest.raises(ConfigError, match=r"train\.epochs: 2 there, 3 asked for"):
        open_run(small_experiment(tmp_path, train__epochs=3))


def test_auto_continues_what_was_asked_for_by_name(tmp_path, on):
    begun(tmp_path, "fp32", "fp32")
    on(WITH_BF16)
    asked = small_experiment(tmp_path, train__precision="auto")
    assert prepare(asked, cpus=1, gpus=0)[0].train.precision == "fp32"
    assert open_run(asked) is not None


def test_a_run_that_never_reached_a_checkpoint_is_chosen_for_anew(tmp_path, on):
    experiment = small_experiment(tmp_path, train__precision="auto")
    assert begun_with(experiment) is None
    save_run(
        experiment,
        experiment.model_copy(update={"train": experiment.train.model_copy(update={"precision": "bf16"})}),
        {},
    )
    on(PLAIN)
    assert prepare(experiment, cpus=1, gpus=0)[0].train.precision == "fp32"


# --- what is slow is told


@pytest.mark.parametrize("asked", ["bf16", "fp16"])
def test_emulation_is_told_with_its_factor(on, monkeypatch, asked):
    on(PLAIN)
    monkeypatch.setattr(precision, "_seconds", lambda device, asked: 0.5 if asked == "fp32" else 8.0)
    said = emulation(CPU, asked)
    assert f"train.precision = {asked}: the CPU has no instructions for it" in said
    assert "16.0 times as long as in fp32" in said
    assert "auto chooses fp32 here" in said


def test_what_the_hardware_has_is_not_told(on):
    on(WITH_BF16)
    assert emulation(CPU, "bf16") is None
    on(TURING)
    assert emulation(CPU, "fp16") is None
    on(PLAIN)
    assert emulation(CPU, "fp32") is None


def test_the_factor_is_measured(on):
    on(PLAIN)
    before = torch.get_rng_state()
    assert "times as long as in fp32" in emulation(CPU, "bf16")
    assert torch.equal(torch.get_rng_state(), before), "a training draws the same numbers"


def test_a_training_tells_before_its_first_step(tmp_path, on, caplog, monkeypatch):
    on(PLAIN)
    monkeypatch.setattr(precision, "_seconds", lambda device, asked: 1.0)
    with caplog.at_level(logging.WARNING):
        start(tmp_path, train__precision="bf16")
    assert "train.precision = bf16: the CPU has no instructions for it" in caplog.text


# --- fp16


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_the_network_computes_in_it(name, dtype):
    layer = torch.nn.Linear(2, 2)
    with autocast(CPU, name):
        assert layer(torch.zeros(1, 2)).dtype == dtype


def start(tmp_path, **changes):
    experiment = prepare(small_experiment(tmp_path, **changes), cpus=1, gpus=0)[0]
    return Worker(experiment, World(0, 1, CPU), NullTracker())


@pytest.fixture
def fast(on, monkeypatch):
    """The scaler of fp16, while the network computes in fp32: convolutions in fp16 take minutes on a CPU."""
    on(Hardware("a GPU", True, True))
    for module in (step, evaluate):
        monkeypatch.setattr(module, "autocast", lambda device, asked: autocast(device, "fp32"))


def weights(worker):
    return {k: v.clone() for k, v in worker.detector.state_dict().items()}


@pytest.mark.slow
def test_fp16_resumes_bit_for_bit_with_its_scale(tmp_path, fast):
    fp16 = {"train__precision": "fp16", "train__optimizer": {"name": "adamw", "lr": 1e-3}}
    straight = start(tmp_path / "a", **fp16)
    straight.scaler.set_growth_interval(2)
    straight.run()
    first = start(tmp_path / "b", **fp16)
    first.scaler.set_growth_interval(2)
    first._train_epoch(0)
    first._save({})
    first.settle()
    assert first.scaler.state_dict()["_growth_tracker"] == 1, "in the middle of an interval"
    resumed = start(tmp_path / "b", **fp16)
    assert resumed.scaler.state_dict() == first.scaler.state_dict()
    resumed.run()
    assert resumed.scaler.get_scale() == straight.scaler.get_scale() > first.scaler.get_scale()
    for name, value in weights(straight).items():
        assert torch.equal(value, resumed.detector.state_dict()[name]), name


@pytest.mark.slow
def test_a_step_that_overflows_is_left_out_with_half_the_scale(tmp_path, fast):
    large = {"cls": {"weight": 1e6}}
    worker = start(tmp_path, train__precision="fp16", train__ema={"enabled": True}, loss=large)
    worker.data.train_loader.start(0)
    batch = next(iter(worker.data.train_loader))
    worker.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    before = weights(worker)
    worker._step([batch], StepSums())
    assert worker.scaler.get_scale() == 2.0**126
    assert worker.position.step == 1
    assert all(torch.equal(v, before[k]) for k, v in weights(worker).items()), "no step was taken"
    worker.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    worker._step([batch], StepSums())
    assert worker.scaler.get_scale() == 2.0**10
    assert any(not torch.equal(v, before[k]) for k, v in weights(worker).items())


@pytest.mark.slow
def test_what_no_scale_can_mend_stops_the_training(tmp_path, fast):
    worker = start(tmp_path, train__precision="fp16")
    with torch.no_grad():
        worker.detector.class_layers[0].bias.fill_(float("nan"))
    worker.scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    worker.data.train_loader.start(0)
    batch = next(iter(worker.data.train_loader))
    worker._step([batch], StepSums())
    with pytest.raises(NonFiniteError, match="gradient is not finite"):
        worker._step([batch], StepSums())
    assert worker.position.step == 1
