"""Any configuration text and any override is a valid experiment, or one error that says what to do; nothing else."""

import json
import math
import re

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mgdet.cli import keys
from mgdet.cli.main import main
from mgdet.config import load
from mgdet.data.transforms import EvalTransform, TrainTransform
from mgdet.errors import MgdetError
from mgdet.runs.dry_run import dry_run
from mgdet.runs.launch import absolute
from mgdet.runs.memory import check_batch_fits
from mgdet.runs.resolve import resolve
from mgdet.sweep.config import load_sweep
from mgdet.training.optim import build_optimizer
from mgdet.training.schedules import Span
from tests.small import small_experiment

BASE = {"name": "x", "data": {"uri": "d", "transform": {"color": {}, "scale_jitter": {}}, "generate": {}}}
SWEEP = {"name": "s", "base": "quickstart", "space": {"seed": {"grid": [0, 1]}}, "scheduler": {"name": "none"}}
EXPERIMENT_KEYS = [key for key in keys.shipped("experiment") if key.key != "plugins"]  # their values are imported
SWEEP_KEYS = [key for key in keys.shipped("sweep") if key.key != "base"]

ODD = [
    *(".inf", "-.inf", ".nan", "1e400", "1.0e+308", "1.0e-320", "-1", "0", "-0.0", "0.5", "1e9", "1000000000", "1_0"),
    *("9223372036854775807", "9223372036854775808", "1180591620717411303424", "1" * 5000, "0x" + "f" * 30, "1:1:1"),
    *("true", "null", "~", "", "''", "[]", "{}", "[1, 2]", "[[1]]", "{name: x}", "{name: [1]}", "{a: {b: c}}", "auto"),
    *(
        "!!int abc",
        "!!binary x",
        "*x",
        "&x [*x]",
        "2020-13-45",
        "{1: 2}",
        "? [1]",
        "[",
        '"a\\0b"',
        '"\\e[31m"',
        "é" * 300,
    ),
    *("~root/x", "/", "../..", "s3://", "file://", "://", "s3://a:b@c", "[.nan, .inf]", "[1e400]", "{x: .nan}"),
    *("[0, 0, 0, 0]", "[1.0e-300]", "[-1, -2, -3, -4, -5]", "[0.9, 1.0]", "[2, 1]", "[1, 1000000000]"),
]
VALUES = st.one_of(
    st.sampled_from(ODD),
    st.integers().map(str),
    st.floats().map(lambda x: yaml.safe_dump(x).splitlines()[0]),
    st.text(max_size=8),
    st.lists(st.floats(width=16) | st.integers(-9, 99), max_size=6).map(yaml.safe_dump),
)


def bounds(key):
    """The numbers at which the range of a key ends, as its own description gives them, and those beside."""
    found = [float(n) for n in re.findall(r"[<>]=? (-?[\d.e+-]+)", key.type)]
    whole = "integer" in key.type
    near = [
        *found,
        *((n + d for n in found for d in (-1, 1)) if whole else (n * f for n in found for f in (0.999, 1.001))),
    ]
    return [str(int(n)) if whole else repr(n) for n in near]


@st.composite
def overrides(draw, known):
    """One to three keys with the choices beside which they exist, each with an odd value or one at its range's end."""
    out = []
    for key in draw(st.lists(st.sampled_from(known), min_size=1, max_size=3)):
        ends = bounds(key)
        value = draw(VALUES | st.sampled_from([*ends, *key.allowed, key.default or "x"]) if ends else VALUES)
        out += [*filter(None, key.only.split(", ")), f"{key.key}={value}"]
    return out


def dry_checks(experiment):
    """What is done with every experiment before its first batch, and that with it."""
    assert load(yaml.safe_load(experiment.to_yaml())) == experiment
    assert json.loads(json.dumps(experiment.identity(), allow_nan=False))
    try:
        resolved, _ = resolve(absolute(experiment), num_images=600, cpus=4, gpus=1)
        check_batch_fits(resolved)
    except MgdetError:
        return
    layer = torch.nn.Linear(2, 2)
    optimizer = build_optimizer(layer, resolved.train.optimizer)
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    span = Span(100, 100 * resolved.train.epochs)
    assert all(math.isfinite(resolved.train.schedule(step, span)) for step in (0, 1, span.total_steps - 1))
    transform = resolved.data.transform
    resize = transform.resize
    if max([*getattr(resize, "sizes", (0,)), getattr(resize, "height", 0), getattr(resize, "width", 0)]) <= 1000:
        image = torch.full((3, 12, 16), 100, dtype=torch.uint8)
        boxes, labels = torch.tensor([[2.0, 2.0, 9.0, 8.0]]), torch.tensor([0])
        EvalTransform(transform)(image, boxes, labels)
        for position in (0, 1):
            TrainTransform(transform, resolved.seed)(image, boxes, labels, epoch=10**6, position=position)


@given(overrides(EXPERIMENT_KEYS))
def test_any_override_of_an_experiment(settings):
    try:
        experiment = load(BASE, settings)
    except MgdetError as error:
        assert len(str(error)) > 10  # noqa: PT017  # most examples end here: a sentence
    else:
        dry_checks(experiment)


@given(overrides(SWEEP_KEYS + EXPERIMENT_KEYS[:20]), st.sampled_from(["trials=2", "set=null", "space.seed=null"]))
def test_any_override_of_a_sweep(settings, first):
    try:
        sweep = load_sweep(SWEEP, [first, *settings])
    except MgdetError as error:
        assert len(str(error)) > 10  # noqa: PT017  # as above
    else:
        assert sweep.total >= 1


WORDS = st.sampled_from(
    [
        *(
            "name",
            "data",
            "uri",
            "train",
            "optimizer",
            "lr",
            "model",
            "assigner",
            "loss",
            "base",
            "plugins",
            "seed",
            "x",
        ),
        *(
            ": ",
            ": ",
            ":\n  ",
            "\n",
            "\n",
            "\n  ",
            "- ",
            "[",
            "]",
            "{",
            "}",
            ", ",
            "1",
            "1e-3",
            ".nan",
            "adamw",
            "null",
        ),
        *("&a ", "*a", "!!int ", "'", '"', "#", "|\n", "%", "\t", "\0", "\x1b", "é", "<<", "? ", "quickstart", "---\n"),
    ]
)


@given(
    st.lists(WORDS, max_size=25).map("".join), st.sampled_from(["", "name: x\ndata: {uri: d}\n", "base: quickstart\n"])
)
def test_any_text_of_a_configuration(tmp_path_factory, text, start):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes((start + text).encode())
    try:
        experiment = load(path)
    except MgdetError as error:
        assert str(path) in str(error)  # noqa: PT017  # it names the file
    else:
        dry_checks(experiment)


@given(st.binary(max_size=60))
def test_any_bytes_of_a_configuration(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(data)
    with pytest.raises(MgdetError):
        load(path)


def test_every_numeric_key_has_a_range():
    unbounded = []
    for key in (*keys.shipped("experiment"), *keys.shipped("sweep")):
        if key.key == "model.backbone.options":
            continue  # timm's own
        numbers = re.findall(r"(?:integer|number)[^,\]]*(?:, [<a][^,\]]*)*", key.type)
        unbounded += [f"{key.key}: {n}" for n in numbers if ">" not in n or "<" not in n]
    assert unbounded == ["assigner.regress_range: number >= 0", "assigner.regress_range: number <= 1e+06"] * 2


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed=1180591620717411303424", "64 bits"),
        ("data.transform.color.brightness=.inf", "less than or equal to 100"),
        ("data.transform.scale_jitter.high=.inf", "less than or equal to 16"),
        ("train.optimizer.lr=.inf", "less than or equal to"),
        ("train.optimizer.lr=1e400", "less than or equal to"),
        ("train.schedule.milestones=[1, .nan]", "train.schedule.milestones = nan"),
        ("train.optimizer={name: adamw, betas: [0.9, 1.0]}", "less than 1"),
        ("evaluation.max_dets=1000000000", "less than or equal to 10000"),
        ("data.transform.resize.height=1000000000", "less than or equal to 16384"),
        ("model.channels=100000000", "less than or equal to 2048"),
        ("cluster.workers=[1, 1000000000]", "less than or equal to 4096"),
        ("cluster.collective_timeout_s=1.0e+300", "less than or equal to"),
        ("loss.box={name: balanced_l1, alpha: 0.01, gamma: 100}", "expected gamma / alpha between"),
        ("model.backbone={name: timm, model: resnet18, options: {x: .nan}}", "finite number"),
        ("tracking.retry_after_s=[-1]", "greater than or equal to 0"),
    ],
)
def test_what_crashed_later_is_refused_at_once(tmp_path, capsys, override, said):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(BASE))
    assert main(["train", str(tmp_path / "c.yaml"), override, "--dry-run"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert said in err
    assert override.partition("=")[0].partition(".")[0] in err


def test_a_batch_that_cannot_fit_is_refused_before_it_is_made(tmp_path, capsys):
    small = small_experiment(tmp_path, data__transform__resize={"name": "fixed", "height": 16384, "width": 16384})
    (tmp_path / "c.yaml").write_text(small.to_yaml())
    options = ["train.batch_size=4096", "data.generate.train=5000", "data.generate.size=48"]
    experiment = load(tmp_path / "c.yaml", options)
    with pytest.raises(MgdetError, match=r"train.batch_size = 4096: 4096 images of 16384 x 16384 pixels .* GiB"):
        check_batch_fits(experiment)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_want_of_memory_is_an_error_with_a_remedy(tmp_path, monkeypatch, capsys, error):
    def fail(_):
        raise error

    monkeypatch.setattr("mgdet.runs.dry_run.dry_run", fail)
    (tmp_path / "c.yaml").write_text(small_experiment(tmp_path).to_yaml())
    assert main(["train", str(tmp_path / "c.yaml"), "--dry-run"]) == 2
    assert "not enough memory" in capsys.readouterr().err


HEAVY = ("data.generate", "data.loader", "cluster", "train.batch_size", "model.weights", "model.backbone.model")
"""Keys at whose upper end a dry run would take hours, all of the memory, or other machines."""
ENDS = [
    (key, value)
    for key in EXPERIMENT_KEYS
    if not key.key.startswith(HEAVY) and "resize" not in key.key and not key.type.startswith(("[", "list"))
    for value in bounds(key)
]


@pytest.mark.exhaustive
@pytest.mark.parametrize(("key", "value"), ENDS, ids=[f"{k.key}={v} {k.only}" for k, v in ENDS])
def test_both_ends_of_every_range_pass_the_dry_run_or_are_refused(tmp_path, key, value):
    settings = [*filter(None, key.only.split(", ")), f"{key.key}={value}"]
    if key.key == "model.channels" and float(value) > 256:
        pytest.skip("takes minutes, and as much memory as it says")
    try:
        dry_run(load(small_experiment(tmp_path).shown(), settings))
    except MgdetError as error:
        assert len(str(error)) > 10  # noqa: PT017  # a sentence
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"space": {f"train.x{n}": {"grid": list(range(20))} for n in range(20)}}, "more than 20,000 points"),
        ({"space": {f"train.x{n}": {"choice": [1, 2]} for n in range(3000)}}, "at most 100 keys"),
        ({"space": {"seed": {"choice": list(range(5000))}}}, "4096 values"),
        ({"space": {"seed": {"choice": [0, float("nan")]}}}, "finite number"),
        ({"space": {"seed": {"integers": [0, 2**63 - 1]}}}, "less than or equal to"),
        ({"space": {"seed": {"uniform": [-1.7e308, 1.7e308]}}}, "greater than or equal to"),
        ({"space": None}, "space"),
        ({"space": 3}, "space"),
        ({"set": [1]}, "set"),
    ],
)  # fmt: skip
def test_spaces_that_cannot_be_searched(changes, said):
    with pytest.raises(MgdetError, match=said):
        load_sweep({**SWEEP, **changes})


@pytest.mark.parametrize(
    "settings", [["set.a=1"], ["space.seed={grid: [1, 2]}"], ["train.epochs=2"], ["scheduler.x=1"]]
)
@pytest.mark.parametrize("part", [{"set": 3}, {"space": [1]}, {"scheduler": "asha"}, {"set": None, "space": None}])
def test_overrides_of_a_sweep_whose_parts_are_no_mappings(settings, part):
    with pytest.raises(MgdetError):
        load_sweep({**SWEEP, **part}, [*settings, "base=nowhere"])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("train.epochs", "yes"), ("seed", "on"), ("train.optimizer.lr", "true"), ("train.batch_size", "Yes")),
        *(("cluster.workers", "[true, 3]"), ("model.anchors.sizes", "[8, 16, 32, 64, true]")),
    ],
)
def test_a_switch_is_no_number(key, value):
    """Python takes true for 1, and so would train one epoch, or with a learning rate of 1."""
    tree = {"name": "x", "data": {"uri": "d"}, "model": {"name": "retinanet"}}
    with pytest.raises(MgdetError, match=f"{key.split('.')[-1]}: expected a number, found true, as YAML reads yes"):
        load(tree, [f"{key}={value}"])
    assert load(tree, ["train.sync_bn=yes", "train.epochs='3'"]).train.epochs == 3
