"""Learning rates, parameter groups, the moving average, and that a resumed optimizer goes on as if never stopped."""

import io
import math
from copy import deepcopy

import pytest
import torch
from torch import nn

from mgdet.training.config import EMAConfig
from mgdet.training.optim import EMA, build_optimizer
from mgdet.training.optimizers import SGD, Adam, AdamW
from mgdet.training.schedules import Constant, Cosine, MultiStep, Span

# --- schedule


@pytest.mark.parametrize(
    ("config", "table"),
    [
        (
            MultiStep(milestones=(0.5, 1.5), gamma=0.1, warmup_steps=0),
            {0: 1, 4: 1, 5: 0.1, 14: 0.1, 15: 0.01, 19: 0.01},
        ),
        (
            MultiStep(milestones=(1, 1.24), gamma=0.5, warmup_steps=4, warmup_factor=0.2),
            {0: 0.2, 1: 0.4, 2: 0.6, 3: 0.8, 4: 1, 9: 1, 10: 0.5, 11: 0.5, 12: 0.25},
        ),
        (
            Cosine(warmup_steps=4, warmup_factor=0.2, final_factor=0.1),
            {0: 0.2, 3: 0.8, 4: 1, 12: 0.55, 20: 0.1, 1000: 0.1},
        ),
        (
            Cosine(warmup_steps=0),
            {0: 1, 5: 0.5 + math.sqrt(0.5) / 2, 10: 0.5, 15: 0.5 - math.sqrt(0.5) / 2, 20: 0},
        ),
        (Cosine(warmup_factor=0.5), {0: 0.5, 1: 0.75, 2: 1, 11: 0.5, 20: 0}),
        (Constant(warmup_steps=4, warmup_factor=0.2), {0: 0.2, 3: 0.8, 4: 1, 19: 1, 1000: 1}),
    ],
    ids=[
        *("fractional milestones", "warm-up and milestones", "warm-up and cosine", "cosine", "automatic warm-up"),
        "constant",
    ],
)
def test_table(config, table):
    """Two epochs of ten steps."""
    got = {step: config(step, Span(steps_per_epoch=10, total_steps=20)) for step in table}
    assert got == pytest.approx(table, abs=1e-12)


@pytest.mark.parametrize(("total", "expected"), [(0, 0), (9, 0), (10, 1), (4999, 499), (5000, 500), (10**6, 500)])
def test_automatic_warmup_is_a_tenth_of_the_training_up_to_500(total, expected):
    assert Cosine().warmup(total) == Cosine().resolved_for(Span(5, total)).warmup_steps == expected
    assert Cosine(warmup_steps=7).warmup(total) == 7


@pytest.mark.parametrize(
    "config", [Cosine(warmup_steps=30), MultiStep(milestones=(1,), warmup_steps=30)], ids=["cos", "ms"]
)
def test_a_warmup_longer_than_the_training_is_no_division_by_zero(config):
    factors = [config(step, Span(10, 20)) for step in range(40)]
    assert factors[:20] == sorted(factors[:20])
    assert all(0 <= f <= 1 for f in factors)


# --- parameter groups


class Net(nn.Module):
    """A convolution, both kinds of norm, a layer with a bias, a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.gn = nn.GroupNorm(2, 4)
        self.frozen = nn.Conv2d(4, 4, 1).requires_grad_(False)
        self.out = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.out(self.frozen(self.gn(self.bn(self.conv(x)))))


def decays(network, optimizer):
    """Weight decay by parameter name; every parameter stands in one group at most."""
    names = {id(p): n for n, p in network.named_parameters()}
    listed = [(names[id(p)], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]]
    assert len(listed) == len(dict(listed))
    return dict(listed)


@pytest.mark.parametrize("config", [SGD, AdamW, Adam])
def test_norms_and_biases_do_not_decay(config):
    network = Net()
    got = decays(network, build_optimizer(network, config(weight_decay=0.1, decay_norm_and_bias=False)))
    flat = {"bn.weight": 0.0, "bn.bias": 0.0, "gn.weight": 0.0, "gn.bias": 0.0, "out.bias": 0.0}
    assert got == {"conv.weight": 0.1, "out.weight": 0.1, **flat}
    got = decays(network, build_optimizer(network, config(weight_decay=0.1, decay_norm_and_bias=True)))
    assert got == {"conv.weight": 0.1, "out.weight": 0.1, **dict.fromkeys(flat, 0.1)}


def test_a_matrix_decays():
    """The weights of a linear layer have two dimensions only."""
    network = nn.Linear(3, 2)
    got = decays(network, build_optimizer(network, AdamW(weight_decay=0.1)))
    assert got == {"weight": 0.1, "bias": 0.0}


def test_decay_reaches_the_weights():
    """With a gradient of zero AdamW multiplies weights by 1 - lr * decay and leaves the others alone."""
    network = Net()
    optimizer = build_optimizer(network, AdamW(lr=0.5, weight_decay=0.1))
    before = deepcopy(network.state_dict())
    for p in network.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    after = network.state_dict()
    torch.testing.assert_close(after["conv.weight"], before["conv.weight"] * 0.95)
    for name in ("bn.weight", "gn.bias", "out.bias", "frozen.weight"):
        assert torch.equal(after[name], before[name])


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (SGD(lr=0.3, momentum=0.8), {"lr": 0.3, "momentum": 0.8, "nesterov": False}),
        (AdamW(lr=0.2, betas=(0.7, 0.9)), {"lr": 0.2, "betas": (0.7, 0.9), "decoupled_weight_decay": True}),
        (Adam(lr=0.2, betas=(0.7, 0.9)), {"lr": 0.2, "betas": (0.7, 0.9), "decoupled_weight_decay": False}),
    ],
    ids=["sgd", "adamw", "adam"],
)
def test_settings_reach_the_optimizer(config, expected):
    for group in build_optimizer(Net(), config).param_groups:
        assert {k: group[k] for k in expected} == expected


# --- moving average


def shake(network, generator):
    """A training step as the average sees it: other parameters, other buffers."""
    with torch.no_grad():
        for p in network.parameters():
            p.add_(torch.randn(p.shape, generator=generator))
    network.bn.running_mean.add_(torch.randn(4, generator=generator))
    network.bn.num_batches_tracked.add_(1)


def test_average_equals_a_loop():
    network, generator = Net(), torch.Generator().manual_seed(0)
    ema = EMA(network, EMAConfig(enabled=True, decay=0.5, warmup=10))
    average = {n: p.detach().clone() for n, p in network.named_parameters()}
    used = []
    for n in range(1, 16):
        shake(network, generator)
        ema.update(network)
        decay = min(0.5, (1 + n) / (10 + n))
        used.append(decay)
        for name, p in network.named_parameters():
            average[name] = decay * average[name] + (1 - decay) * p.detach()
    assert used[0] < 0.5 == used[-1], "the warm-up and what follows it"
    assert ema.updates == 15
    for name, p in ema.module.named_parameters():
        torch.testing.assert_close(p.detach(), average[name])


def test_buffers_are_copied_not_averaged():
    network, generator = Net(), torch.Generator().manual_seed(1)
    ema = EMA(network, EMAConfig(enabled=True))
    for _ in range(3):
        shake(network, generator)
        ema.update(network)
    assert int(ema.module.bn.num_batches_tracked) == 3
    assert torch.equal(ema.module.bn.running_mean, network.bn.running_mean)


def test_the_average_is_a_network_of_its_own():
    network = Net().train()
    ema = EMA(network, EMAConfig(enabled=True))
    assert network.training
    assert not ema.module.training
    assert not any(p.requires_grad for p in ema.module.parameters())
    before = ema.module.conv.weight.clone()
    shake(network, torch.Generator().manual_seed(2))
    assert torch.equal(ema.module.conv.weight, before)


def round_trip(state):
    """Through a file, read as checkpoints are."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def test_the_average_goes_on_after_a_round_trip():
    network, generator = Net(), torch.Generator().manual_seed(3)
    config = EMAConfig(enabled=True, decay=0.9)
    straight = EMA(network, config)
    for _ in range(4):
        shake(network, generator)
        straight.update(network)
    resumed = EMA(Net(), config)
    resumed.load_state_dict(round_trip(straight.state_dict()))
    assert resumed.updates == 4
    resumed_without_counter = EMA(network, config)
    resumed_without_counter.module.load_state_dict(straight.module.state_dict())
    shake(network, generator)
    for ema in (straight, resumed, resumed_without_counter):
        ema.update(network)
    for (name, a), b in zip(straight.module.state_dict().items(), resumed.module.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert not torch.equal(straight.module.conv.weight, resumed_without_counter.module.conv.weight)


# --- resuming


@pytest.mark.parametrize("config", [SGD(lr=0.05), AdamW(lr=0.01), Adam(lr=0.01)], ids=["sgd", "adamw", "adam"])
def test_a_resumed_optimizer_goes_on_as_if_never_stopped(config):
    cosine = Cosine(warmup_steps=2)
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    def build():
        torch.manual_seed(0)
        network = Net()
        optimizer = build_optimizer(network, config)
        return network, optimizer

    def step(network, optimizer, number):
        for group in optimizer.param_groups:
            group["lr"] = config.lr * cosine(number, Span(3, 6))
        optimizer.zero_grad()
        network(x).square().mean().backward()
        optimizer.step()

    straight = build()
    for number in range(6):
        step(*straight, number)

    first = build()
    for number in range(3):
        step(*first, number)
    saved = round_trip({"network": first[0].state_dict(), "optimizer": first[1].state_dict()})

    def resume(with_state: bool):
        network, optimizer = build()
        network.load_state_dict(saved["network"])
        if with_state:
            optimizer.load_state_dict(saved["optimizer"])
        for number in range(3, 6):
            step(network, optimizer, number)
        return network.state_dict()

    resumed, expected = resume(True), straight[0].state_dict()
    for name in expected:
        assert torch.equal(resumed[name], expected[name]), name
    assert not torch.equal(resume(False)["conv.weight"], expected["conv.weight"]), "momenta matter"
