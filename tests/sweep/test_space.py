"""The search space: what may be written, what is drawn, and what is validated before anything starts."""

import itertools

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from mgdet.sweep.space import AnyDomain, Choice, Grid, Integers, LogUniform, Space, Uniform

domain = TypeAdapter(AnyDomain).validate_python


def draw(space, seed=0, count=30):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return [space.settings(space.suggest(study.ask())) for _ in range(count)]


@pytest.mark.parametrize(
    ("written", "kind"),
    [
        ({"uniform": [1, 4]}, Uniform),
        ({"loguniform": [1e-4, 1e-2]}, LogUniform),
        ({"integers": [1, 9]}, Integers),
        ({"choice": ["a", "b"]}, Choice),
        ({"grid": [0, 1]}, Grid),
    ],
)
def test_each_kind(written, kind):
    assert isinstance(domain(written), kind)


@pytest.mark.parametrize(
    "written",
    [
        {"uniform": [4, 1]},
        {"uniform": [1, 1]},
        {"uniform": [1]},
        {"uniform": ["a", 1]},
        {"uniform": [0, float("inf")]},
        {"loguniform": [0, 1]},
        {"integers": [0.5, 2]},
        {"integers": [0, 8], "log": True},
        {"choice": []},
        {"choice": [1, 1]},
        {"grid": [[1, 2], [1, 2]]},
        {"uniform": [1, 2], "choice": [1]},
        {"unifrom": [1, 2]},
        {"uniform": [1, 2], "wehn": {}},
        3,
    ],
)
def test_what_is_no_domain(written):
    with pytest.raises(ValidationError):
        domain(written)


def test_every_drawn_value_is_in_its_domain():
    space = Space(
        {
            "u": domain({"uniform": [1, 4]}),
            "l": domain({"loguniform": [1e-4, 1e-2]}),
            "i": domain({"integers": [2, 4]}),
            "c": domain({"choice": [[1, 2], {"a": 1}, None, "x"]}),
        }
    )
    drawn = draw(space, count=60)
    assert all(1 <= d["u"] <= 4 and 1e-4 <= d["l"] <= 1e-2 for d in drawn)
    assert {d["i"] for d in drawn} == {2, 3, 4}
    assert [v for v in ([1, 2], {"a": 1}, None, "x") if v not in [d["c"] for d in drawn]] == []


CONDITIONAL = {
    "sigma": {"uniform": [1, 4], "when": {"name": "mutual_guidance"}},
    "k": {"integers": [1, 9], "when": {"name": ["atss", "simota"]}},
    "deep": {"choice": [1, 2], "when": {"flag": True}},
    "flag": {"choice": [True, False], "when": {"name": "atss"}},
    "name": {"choice": ["mutual_guidance", "atss", "simota"]},
}


def exists(values):
    """Which keys of CONDITIONAL exist, written out."""
    keys = {"name"}
    if values["name"] == "mutual_guidance":
        keys.add("sigma")
    if values["name"] in ("atss", "simota"):
        keys.add("k")
    if values["name"] == "atss":
        keys.add("flag")
        if values["flag"]:
            keys.add("deep")
    return keys


def test_a_key_is_drawn_only_where_its_condition_holds():
    drawn = draw(Space({k: domain(v) for k, v in CONDITIONAL.items()}), count=80)
    assert all(set(d) == exists(d) for d in drawn)
    assert any("deep" in d for d in drawn)


def test_corners_hold_every_option_and_both_ends():
    space = Space({k: domain(v) for k, v in CONDITIONAL.items()})
    corners = list(space.corners())
    assert all(set(c) == exists(c) for c in corners)
    # mutual_guidance: 2 ends; simota: 2 ends; atss: 2 ends x (flag with 2 deep, or no flag)
    assert len(corners) == 2 + 2 + 2 * 3
    assert {c["k"] for c in corners if "k" in c} == {1, 9}


@given(st.lists(st.integers(1, 4), min_size=1, max_size=6), st.integers(1, 40))
def test_a_large_space_still_shows_every_option(sizes, limit):
    """Beyond the limit the corners are fewer than all combinations, and still hold each option of each key."""
    space = Space({f"k{i}": Choice(choice=list(range(n))) for i, n in enumerate(sizes)})
    corners = list(space.corners(limit))
    everything = list(itertools.product(*(range(n) for n in sizes)))
    if len(everything) <= limit:
        assert sorted(tuple(c.values()) for c in corners) == everything
    for i, n in enumerate(sizes):
        assert {c[f"k{i}"] for c in corners} == set(range(n))


def test_a_large_conditional_space_keeps_its_conditions():
    domains = {k: domain(v) for k, v in CONDITIONAL.items()}
    corners = list(Space(domains).corners(limit=3))
    assert all(set(c) == exists(c) for c in corners)
    for key, d in domains.items():
        assert {str(c[key]) for c in corners if key in c} == {str(o) for o in d.options()}


def test_grids_are_multiplied_where_they_exist():
    space = Space(
        {
            "name": domain({"grid": ["a", "b"]}),
            "seed": domain({"grid": [0, 1]}),
            "x": domain({"grid": [5, 6], "when": {"name": "b"}}),
            "lr": domain({"uniform": [0, 1]}),
        }
    )
    points = [tuple(sorted(p.items())) for p in space.grid()]
    assert len(points) == len(set(points)) == 2 + 4
    assert all("lr" not in dict(p) for p in points)


def test_without_a_grid_there_is_one_point():
    assert Space({"x": domain({"uniform": [0, 1]})}).grid() == [{}]


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"x": {"uniform": [0, 1], "when": {"y": 1}}}, "when names y, which is not in the space"),
        ({"x": {"choice": [1], "when": {"y": 1}}, "y": {"choice": [1], "when": {"x": 1}}}, "each depends on another"),
        ({"x": {"choice": [1], "when": {"y": 1}}, "y": {"uniform": [0, 1]}}, "only choice and grid can decide"),
        ({"x": {"choice": [1], "when": {"y": 3}}, "y": {"choice": [1, 2]}}, "never holds"),
        ({"x": {"grid": [1], "when": {"y": 1}}, "y": {"choice": [1, 2]}}, "chosen by the searcher"),
    ],
)
def test_conditions_that_cannot_be_followed(space, message):
    with pytest.raises(ValueError, match=message):
        Space({k: domain(v) for k, v in space.items()})
