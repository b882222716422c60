"""A run is trained again and compared, bit for bit; what made it is compared first."""

import json
import math
import random
import re
import shutil
from pathlib import Path

import pytest
import torch

from mgdet import provenance
from mgdet.cli.main import main
from mgdet.provenance import made_by
from mgdet.runs import reproduce
from mgdet.runs.compare import compare_configuration, compare_data, compare_metrics, compare_origin, table
from mgdet.runs.launch import train_in_process
from mgdet.tracking import JournalTracker
from mgdet.training.checkpoint import CheckpointStore
from tests.small import small_experiment
from tests.training.test_run import snapshot


@pytest.fixture(scope="module", autouse=True)
def _a_clean_checkout():
    """Whatever this checkout is while the tests run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(provenance, "_git", lambda root: ("c" * 40, False))
        provenance._program.cache_clear()
        yield
    provenance._program.cache_clear()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that has come to its end, and its reproduction, made once."""
    directory = tmp_path_factory.mktemp("reproduce")
    e = small_experiment(directory, train__log_every=1, train__epochs=1)
    train_in_process(e)
    before = snapshot(Path(e.run_uri))
    assert main(["reproduce", e.run_uri]) == 0
    assert snapshot(Path(e.run_uri)) == before, "the run itself is never touched"
    torch.use_deterministic_algorithms(False)
    return directory


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    """A copy of both, where no training can be begun."""

    def no_training(experiment):
        raise AssertionError("it trains")

    monkeypatch.setattr("mgdet.cluster.train.run", no_training)
    shutil.copytree(trained / "runs", tmp_path / "runs")
    return tmp_path / "runs/small"


def here_is_another(monkeypatch, **versions):
    now = made_by()
    monkeypatch.setattr(reproduce, "made_by", lambda: {**now, "versions": {**now["versions"], **versions}})


# --- the command


@pytest.mark.slow
def test_the_reproduction_has_the_same_metrics_and_is_a_run_of_its_own(trained, capsys):
    assert main(["reproduce", str(trained / "runs/small")]) == 0  # it is finished: compared once more
    said = capsys.readouterr().out
    assert re.search(r"values compared +\d\d+\ndifferent +0\nall metrics are equal, bit for bit\n$", said)
    record = json.loads((trained / "runs/small-reproduced/run.json").read_text())
    assert record["learned"]["name"] == "small-reproduced"
    assert record["run_ids"] == {}


@pytest.mark.slow
def test_the_first_step_and_metric_that_differ_are_named(run, monkeypatch, capsys):
    monkeypatch.setattr("mgdet.cluster.train.run", lambda experiment: None)
    journal = run / "metrics.jsonl"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    journal.unlink()
    tracker = JournalTracker(run)
    for line in lines:
        changed = {"train/loss": math.nextafter(line["metrics"].get("train/loss", 0), 9)} if line["step"] > 1 else {}
        tracker.log({**line["metrics"], **changed}, line["step"])
    tracker.close()
    assert main(["reproduce", str(run)]) == 1
    said = capsys.readouterr()
    assert re.search(r"first difference, step 2: train/loss is [\d.]+ \([\d.]+\) in the run and [\d.]+ ", said.err)
    assert re.search(r"^different +\d$", said.out, re.MULTILINE)


@pytest.mark.slow
def test_what_decides_keeps_it_from_training(run, monkeypatch, capsys):
    here_is_another(monkeypatch, torch="9.9", ray="9.9")
    shutil.rmtree(run.with_name("small-reproduced"))
    assert main(["reproduce", str(run), "--compare-only"]) == 1
    out = capsys.readouterr().out
    assert re.search(rf"^DECIDES +torch +{re.escape(made_by()['versions']['torch'])} +9\.9$", out, re.MULTILINE)
    assert re.search(r"^differs +ray ", out, re.MULTILINE)
    assert out.endswith("differs and decides: torch\n")
    assert main(["reproduce", str(run)]) == 2
    assert "because these differ: torch. Nothing was trained" in capsys.readouterr().err
    with pytest.raises(AssertionError, match="it trains"):
        main(["reproduce", str(run), "--anyway"])


@pytest.mark.slow
def test_a_reproduction_that_other_software_made_is_not_taken_for_this_one(run, monkeypatch, capsys):
    here_is_another(monkeypatch, numpy="9.9")
    assert main(["reproduce", str(run), "--anyway"]) == 2
    assert "small-reproduced was begun with another numpy than is here now. Remove it" in capsys.readouterr().err


@pytest.mark.slow
def test_other_data_decide(run, trained, tmp_path, capsys):
    other = small_experiment(tmp_path, data__generate={"train": 5, "val": 3, "size": 64})
    reproduce.training_images(other.data)
    assert main(["reproduce", str(run), "--compare-only", "--data", other.data.uri]) == 1
    assert re.search(r"^DECIDES +data +split 'train' had 6 images", capsys.readouterr().out, re.MULTILINE)
    shutil.copytree(trained / "shapes", tmp_path / "moved")
    assert main(["reproduce", str(run), "--compare-only", "--data", str(tmp_path / "moved")]) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda run: (run / "run.json").unlink(), "holds no run: there is no run.json"),
        (lambda run: shutil.rmtree(run / "checkpoints"), "has not come to its end"),
        (lambda run: (run / "metrics.jsonl").unlink(), "has no metrics to compare with"),
        (lambda run: (run / "config.yaml").unlink(), "config.yaml cannot be read"),
        (lambda run: (run / "config.yaml").write_text("- 1"), "expected the configuration of a run"),
        (lambda run: (run / "config.yaml").write_text("a: [}"), "config.yaml cannot be read"),
        (lambda run: (run / "config.yaml").write_text("nmae: x"), "unknown key nmae"),
        (lambda run: (run.with_name("small-reproduced") / "run.json").unlink(), "exists, and is no run"),
    ],
)
def test_what_a_user_can_mend(run, capsys, change, said):
    change(run)
    assert main(["reproduce", str(run)]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("step", "goes_on"), [(2, False), (5, True)])
def test_a_reproduction_goes_on_only_from_the_end_of_a_line(run, capsys, step, goes_on):
    for each in ("small", "small-reproduced"):
        config = run.with_name(each) / "config.yaml"
        config.write_text(config.read_text().replace("log_every: 1\n", "log_every: 5\n"))
    shutil.rmtree(run.with_name("small-reproduced") / "checkpoints")
    CheckpointStore(str(run.with_name("small-reproduced"))).save({"model": {}}, step=step, epoch=0, metrics={})
    if goes_on:
        with pytest.raises(AssertionError, match="it trains"):
            main(["reproduce", str(run)])
    else:
        assert main(["reproduce", str(run)]) == 2
        assert "was interrupted at step 2, between two lines" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("name", "said"), [("small", "is the run itself"), ("../x", "name = '../x'")])
def test_names_that_a_reproduction_cannot_have(run, capsys, name, said):
    before = snapshot(run)
    assert main(["reproduce", str(run), "--name", name]) == 2
    assert said in capsys.readouterr().err
    assert snapshot(run) == before


# --- what made a run


@pytest.mark.slow
def test_every_part_of_the_origin_is_compared():
    here = made_by()
    assert {row.verdict for row in compare_origin(here, here, gpu=True)} == {"same"}
    changed = {
        "mgdet": "0.0.1",
        "git_commit": "d" * 40,
        "git_dirty": True,
        "versions": {name: f"{version}x" for name, version in here["versions"].items()},
        "hardware": {name: f"{value}x" for name, value in here["hardware"].items()},
        "command": "mgdet train",
    }
    on_cpu, on_gpu = ({row.what: row.verdict for row in compare_origin(changed, here, gpu)} for gpu in (False, True))
    assert {what for what, verdict in on_gpu.items() if verdict == "differs"} == {
        *("ray", "mlflow", "optuna", "pyarrow", "command", "cpus")
    }
    assert {what for what in on_gpu if on_cpu[what] != on_gpu[what]} == {"cuda", "gpus"}
    assert {"mgdet", "git commit", "uncommitted changes", "torch", "threads", "cpu"} <= on_cpu.keys()
    assert "same" not in on_gpu.values()


@pytest.mark.slow
def test_changed_files_decide_on_both_sides_and_what_is_not_known_is_told():
    here = {**made_by(), "git_dirty": True}
    rows = {row.what: row for row in compare_origin(here, here, gpu=False)}
    assert [what for what, row in rows.items() if row.verdict == "DECIDES"] == ["uncommitted changes"]
    older = {**here, "git_dirty": False, "versions": {"torch": here["versions"]["torch"]}, "hardware": "a machine"}
    rows = {row.what: row for row in compare_origin(older, {**here, "git_dirty": False}, gpu=False)}
    assert rows["numpy"].verdict == rows["threads"].verdict == "not recorded"
    assert [row.what for row in compare_origin({}, here, gpu=False) if row.verdict == "DECIDES"] == ["everything"]
    assert [row.verdict for row in compare_data({"classes": []}, {"classes": [], "splits": {}})] == ["not recorded"]


@pytest.mark.slow
def test_the_configuration_is_compared_but_for_what_was_auto(tmp_path):
    e = small_experiment(tmp_path)
    asked = json.loads(json.dumps(e.identity())) | {"train.schedule.name": "auto", "data.uri": "/elsewhere"}
    assert [row.verdict for row in compare_configuration(asked, e)] == ["same"]
    del asked["seed"]
    asked |= {"train.batch_size": 3, "assigner.gone": 1}
    elastic = e.model_copy(update={"cluster": e.cluster.model_copy(update={"workers": (1, 2)})})
    found = {row.what: row.verdict for row in compare_configuration(asked, elastic)}
    assert found == {
        "train.batch_size": "DECIDES",
        "assigner.gone": "DECIDES",
        "seed": "not recorded",
        "cluster.workers": "DECIDES",
    }


@pytest.mark.slow
def test_the_table_holds_no_control_characters():
    here = made_by()
    text = table(compare_origin({**here, "mgdet": "\x1b[2J1.0"}, here, gpu=False))
    assert "\x1b" not in text
    assert len({line.index(here["versions"]["torch"]) for line in text.splitlines() if " torch " in line}) == 1


# --- metrics


@pytest.mark.slow
def test_journals_are_compared_bit_for_bit(tmp_path):
    """Against dictionaries that are filled by hand, with what JSON has no number for and lines that are repeated."""
    random.seed(1)
    values = [0.0, -0.0, math.nan, math.inf, -math.inf, 0.1, math.nextafter(0.1, 1), 5e-324]
    for number in range(40):
        contents, known = [], []
        for side in "ab":
            directory, first = tmp_path / f"{number}{side}", {}
            tracker = JournalTracker(directory)
            for step in sorted(random.choices(range(4), k=random.randrange(7))):
                metrics = {name: random.choice(values[: 1 + number // 5]) for name in random.sample("xyz", 2)}
                tracker.log({**metrics, "val/seconds": random.random(), "train/images_per_s": random.random()}, step)
                for name, value in metrics.items():
                    first.setdefault((step, name), repr(value))
            tracker.close()
            file = directory / "metrics.jsonl"
            contents.append((file.read_bytes() if file.exists() else b"") + b'{"step": 9, "half a li')
            known.append(first)
        keys = sorted(known[0].keys() | known[1].keys())
        other = [key for key in keys if known[0].get(key) != known[1].get(key)]
        found = compare_metrics(*contents)
        assert (found.values, found.different) == (len(keys), len(other))
        assert found.first.startswith(f"step {other[0][0]}: {other[0][1]} is " if other else "")
        assert bool(found.first) == bool(other)
