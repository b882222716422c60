"""The study of the assigners: its evaluation on the test split, and the page that says what came out.

    for study in configs/studies/bccd_*.yaml; do mgdet tune $study; done
    python benchmarks/study.py test                 # the last weights of each finished run, on `test`, once
    python benchmarks/study.py page                 # writes docs/evidence.md from the MLflow store

`test` adds the metrics of the test split as `test/...` to each run of the MLflow experiment `study`, and leaves those
alone that have them. `page` reads only the store. It refuses runs that differ in more than their arm and seed, and two
runs of one arm and seed. An assigner of your own, or one of mgdet's that is no arm yet, gets its row by one command:

    python benchmarks/study.py arm mine plugins=[mine]     # trains it, looks at `test`, and writes the page

It trains the assigner `mine` with the seeds and the budget of a study (`--study`, by default bccd_retinanet), and that
study's baseline where the store has none. What else is particular to the arm follows as `key=value`:
`arm dw model.quality=objectness loss.cls.weight=0 loss.box.weight=0 loss.bag.name=dw`. The same command goes on with
what was stopped.
"""

import argparse
import math
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from study_numbers import Paired, across_arms, holm, paired, seeds_needed, within_arms

import mgdet
from mgdet.config_yaml import flatten
from mgdet.errors import ConfigError, MgdetError
from mgdet.sweep.config import load_sweep
from mgdet.sweep.space import Space
from mgdet.tracking.client import connect, mlflow_name, resolve_uri

EXPERIMENT, SPLIT, BASELINE = "study", "test", "baseline"
AP, MORE_AP = "AP", ("AP50", "AP75", "APs", "APm", "APl")
DIVERGENCES = ("divergence", "divergence_pre_nms", "divergence_recall")
STUDIES = Path(__file__).resolve().parents[1] / "configs" / "studies"
OF_THE_ARM = ("assigner.", "loss.", "model.quality", "model.rescoring.", "model.centre_prior")
MAY_DIFFER = (
    *("name", "seed", "storage", *OF_THE_ARM, "cluster.", "tracking."),
    *("evaluation.", "data.loader.", "plugins", "train.log_every", "train.keep_best"),
)
"""Parameters in which the runs of one table may differ; every other one is the budget."""


class Run(NamedTuple):
    """One finished training of the study."""

    run_id: str
    name: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    uri: str  # of its directory

    @property
    def table(self) -> tuple[str, str]:
        """Data set and detector."""
        return Path(self.params["data.uri"]).name, self.params["model.name"]

    @property
    def seed(self) -> int:
        """With which arms are paired."""
        return int(self.params["seed"])

    @property
    def arm(self) -> str:
        """What is compared: the assigner, in words where it is one of the papers' arms."""
        get = self.params.get
        name = get("assigner.name", "?")
        arm = {
            "max_iou": BASELINE,
            "center_sampling": BASELINE,
            "mutual_guidance": f"mutual guidance, {get('assigner.direction')}",
            "mutual_labeling": "mutual labeling",
            "permutation": f"permutation of {get('assigner.of')}",
        }.get(name, name)
        rescored = " + rescoring" if get("model.quality") == "iou" else ""
        return arm + rescored + (" + correlation loss" if "loss.correlation.weight" in self.params else "")


Arms = dict[str, dict[int, Run]]
"""The runs of one table, by arm and seed."""


def read_runs(client: Any, experiment: str) -> list[Run]:
    """The finished trainings of an experiment of the store; the runs of the sweeps themselves are left out."""
    found = client.get_experiment_by_name(experiment)
    if found is None:
        raise ConfigError(f"the store has no experiment {experiment!r}: run the studies first, see --help")
    runs, token = [], None
    while True:
        page = client.search_runs([found.experiment_id], "attributes.status = 'FINISHED'", page_token=token)
        runs += [
            Run(r.info.run_id, r.info.run_name, r.data.params, r.data.metrics, r.data.tags.get("mgdet.run", ""))
            for r in page
            if "seed" in r.data.params and "mgdet.run" in r.data.tags
        ]
        if not (token := page.token):
            return sorted(runs, key=lambda r: (r.table, r.arm, r.seed, r.name))


def tables(runs: Sequence[Run]) -> dict[tuple[str, str], Arms]:
    """Runs by data set and detector, arm and seed.

    Raises:
        ConfigError: two runs of one arm and seed, runs with different budgets, or a table without a baseline.
    """
    out: dict[tuple[str, str], Arms] = defaultdict(lambda: defaultdict(dict))
    for run in runs:
        arm = out[run.table][run.arm]
        if run.seed in arm:
            raise ConfigError(
                f"{run.table}, {run.arm}, seed {run.seed}: two runs, {arm[run.seed].name} and {run.name}; a choice "
                "between them would be one by result: delete one of them in MLflow, whatever its result is"
            )
        arm[run.seed] = run
    for table, arms in out.items():
        if BASELINE not in arms:
            raise ConfigError(f"{table}: no run of the baseline, with which every arm is compared")
        _require_one_budget(table, [run for arm in arms.values() for run in arm.values()])
    return {table: dict(arms) for table, arms in out.items()}


def _require_one_budget(table: tuple[str, str], runs: Sequence[Run]) -> None:
    first = runs[0]
    for run in runs[1:]:
        for key in first.params.keys() | run.params.keys():
            mine, other = first.params.get(key), run.params.get(key)
            if mine != other and not key.startswith(MAY_DIFFER):
                raise ConfigError(
                    f"{table}: {first.name} has {key} = {mine} and {run.name} {other}: a table compares runs that "
                    "differ in their arm and seed alone"
                )


def train_arm(client: Any, args: argparse.Namespace) -> None:
    """Train an arm with the seeds and the budget of a study, and the study's baseline unless the store has one.

    Raises:
        ConfigError: no such study, assigner or key.
    """
    path = STUDIES / f"{args.study}.yaml"
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in STUDIES.glob("*.yaml")))
        raise ConfigError(f"--study {args.study}: no such study; there are {known}")
    where = [f"tracking.experiment={args.experiment}"]
    where += [] if args.store == "auto" else [f"tracking.uri={args.store}"]
    shared = [setting for setting in args.settings if not setting.startswith(OF_THE_ARM)]
    study = load_sweep(path, [*shared, *where])
    settings = Space(study.space).settings(study.points[0])
    tree = flatten(study.experiment(settings).shown())
    table = Run("", "", {key: str(value) for key, value in tree.items()}, {}, "").table
    arms = {args.arm: args.settings}
    if not _has_baseline(client, args.experiment, table):
        arms[settings["assigner"]["name"]] = shared
    for assigner, changed in arms.items():
        called = f"study-{args.study}-{assigner}".replace("_", "-")
        one = f"space.assigner={{grid: [{{name: {assigner}}}]}}"
        mgdet.tune(str(path), [f"name={called}", one, *where, *changed])


def _has_baseline(client: Any, experiment: str, table: tuple[str, str]) -> bool:
    if client.get_experiment_by_name(experiment) is None:
        return False
    return any(run.table == table and run.arm == BASELINE for run in read_runs(client, experiment))


def values(arm: Mapping[int, Run], metric: str) -> dict[int, float]:
    """A metric of each seed; NaN where it is absent."""
    return {seed: run.metrics.get(metric, math.nan) for seed, run in arm.items()}


# The page -------------------------------------------------------------------------------------------------------------


def page(found: Mapping[tuple[str, str], Arms], split: str, command: str) -> Iterator[str]:
    """The lines of the page."""
    yield "# Evidence\n"
    yield f"Made from the MLflow store by `{command}`. Nothing on this page is written by hand.\n"
    yield (
        "Every difference is that of an arm and the baseline with the *same seed* (weights, order and augmentation); "
        f"metrics are those of the last weights on the split `{split}`. In brackets: the 95 % interval of the mean "
        "difference by Student's t. p: exact test of the signs of the differences, two-sided, adjusted by Holm over "
        "the arms of a table. *needed*: seeds with which a difference as large as the one seen is found with 80 % "
        "power."
    )
    if split != SPLIT:
        yield "\n**These are not results on a test split.** Anything that was chosen by these numbers flatters itself."
    yield "\n## What was run\n"
    yield "| data | detector | arms | runs | seeds of the baseline | epochs |\n|---|---|---|---|---|---|"
    for (data, detector), arms in found.items():
        runs = [run for arm in arms.values() for run in arm.values()]
        seeds = ", ".join(map(str, sorted(arms[BASELINE])))
        yield f"| {data} | {detector} | {len(arms)} | {len(runs)} | {seeds} | {runs[0].params.get('train.epochs')} |"
    for table, arms in found.items():
        yield from _table(table, arms, split)
    yield from _claims(found, split)


def _table(table: tuple[str, str], arms: Arms, split: str) -> Iterator[str]:
    yield f"\n## {table[0]}, {table[1]}\n"
    ap = differences(arms, f"{split}/{AP}")
    adjusted = holm({arm: d.p for arm, d in ap.items()})
    yield "| arm | seeds | AP | difference | p | needed |\n|---|---|---|---|---|---|"
    for arm, runs in _in_order(arms):
        mean = _mean(values(runs, f"{split}/{AP}"))
        if arm == BASELINE:
            yield f"| {arm} | {len(runs)} | {mean} | | | |"
            continue
        needed = seeds_needed(ap[arm].mean, ap[arm].deviation)
        p = adjusted[arm]
        shown = f"{p:.3f}" if math.isfinite(p) else ""
        yield f"| {arm} | {ap[arm].seeds} | {mean} | {_interval(ap[arm])} | {shown} | {needed or ''} |"
    for metrics in (MORE_AP, DIVERGENCES):
        yield f"\n| difference of | {' | '.join(metrics)} |\n|---|{'---|' * len(metrics)}"
        each = {metric: differences(arms, f"{split}/{metric}") for metric in metrics}
        for arm, _ in _in_order(arms):
            if arm != BASELINE:
                yield f"| {arm} | {' | '.join(_interval(each[metric][arm]) for metric in metrics)} |"
    yield "\n| AP against | across arms | within arms |\n|---|---|---|"
    for metric in DIVERGENCES:
        pairs = [_pairs(arm, split, metric) for arm in arms.values()]
        across, within = across_arms(pairs), within_arms(pairs)
        yield f"| {metric} | {_rho(*across)} | {_rho(*within)} |"
    yield (
        "\nAcross arms: rank correlation of the arms' means. Within arms: of the single runs less their arm's mean. "
        "Every run is looked at after the same number of epochs, so that time is in neither."
    )


def _claims(found: Mapping[tuple[str, str], Arms], split: str) -> Iterator[str]:
    """The papers' claims, one by one, on every table that has the arms for it."""
    yield "\n## The claims\n"
    yield "A claim *holds* on a table where the interval lies on its side of 0, *fails* where it lies on the other, and"
    yield "is *open* where it contains 0, whatever its middle is.\n"
    yield "| claim | data | detector | difference | verdict |\n|---|---|---|---|---|"
    for text, arm, against, metric, sign in CLAIMS:
        for (data, detector), arms in found.items():
            if arm in arms and against in arms:
                d = paired(values(arms[arm], f"{split}/{metric}"), values(arms[against], f"{split}/{metric}"))
                yield f"| {text} | {data} | {detector} | {_interval(d)} | {verdict(d, sign)} |"


BOTH, LABELING = "mutual guidance, both", "mutual labeling"
CLAIMS = (
    ("mutual guidance gains AP", BOTH, BASELINE, "AP", 1),
    ("mostly at IoU 0.75: it gains AP75", BOTH, BASELINE, "AP75", 1),
    ("and AP50", BOTH, BASELINE, "AP50", 1),
    ("localize to classify alone gains AP", "mutual guidance, loc_to_cls", BASELINE, "AP", 1),
    ("classify to localize alone gains AP", "mutual guidance, cls_to_loc", BASELINE, "AP", 1),
    ("both directions are better than the same count unguided", BOTH, "mutual guidance, none", "AP", 1),
    ("it matters which priors learn, not how many", BOTH, "permutation of mutual_guidance", "AP", 1),
    ("mutual labeling gains AP", LABELING, BASELINE, "AP", 1),
    ("mutual labeling lowers the divergence", LABELING, BASELINE, "divergence", -1),
    ("rescoring lowers it further", f"{LABELING} + rescoring", LABELING, "divergence", -1),
    ("rescoring gains AP beside mutual labeling", f"{LABELING} + rescoring", LABELING, "AP", 1),
)
"""What is claimed, of which arm against which, in which metric, and its sign."""


def verdict(difference: Paired, sign: int) -> str:
    """In one word."""
    if not difference.excludes_zero:
        return "open"
    return "holds" if difference.mean * sign > 0 else "fails"


def differences(arms: Arms, metric: str) -> dict[str, Paired]:
    """Of every arm and the baseline."""
    base = values(arms[BASELINE], metric)
    return {arm: paired(values(runs, metric), base) for arm, runs in arms.items() if arm != BASELINE}


def _in_order(arms: Arms) -> list[tuple[str, dict[int, Run]]]:
    return sorted(arms.items(), key=lambda item: (item[0] != BASELINE, item[0]))


def _pairs(arm: Mapping[int, Run], split: str, metric: str) -> list[tuple[float, float]]:
    x, y = values(arm, f"{split}/{metric}"), values(arm, f"{split}/{AP}")
    return [(x[s], y[s]) for s in arm if math.isfinite(x[s]) and math.isfinite(y[s])]


def _mean(found: Mapping[int, float]) -> str:
    numbers = [v for v in found.values() if math.isfinite(v)]
    return f"{math.fsum(numbers) / len(numbers):.3f}" if numbers else ""


def _interval(d: Paired) -> str:
    if not d.seeds:
        return ""
    return f"{d.mean:+.3f}" + (f" [{d.low:+.3f}, {d.high:+.3f}]" if d.seeds > 1 else " (one seed)")


def _rho(rho: float, p: float, n: int) -> str:
    return f"{rho:+.2f} (p {p:.3f}, n {n})" if math.isfinite(rho) else f"undefined (n {n})"


def draw(found: Mapping[tuple[str, str], Arms], split: str, directory: Path) -> list[Path]:
    """The intervals of each table as a picture; returns the files."""
    from matplotlib.figure import Figure

    files = []
    for (data, detector), arms in found.items():
        shown = [(arm, d) for arm, d in differences(arms, f"{split}/{AP}").items() if d.seeds > 1]
        if not shown:
            continue
        figure = Figure(figsize=(7, 1 + 0.35 * len(shown)), layout="constrained")
        axes = figure.subplots()
        for place, (_, d) in enumerate(shown):
            axes.plot([d.low, d.high], [place, place], color="black", linewidth=1)
            axes.plot([d.mean], [place], "o", color="black", markersize=4)
        axes.axvline(0, color="grey", linewidth=0.8)
        axes.set_yticks(range(len(shown)), [arm for arm, _ in shown])
        axes.set_xlabel(f"difference in {split}/{AP} from the baseline, mean and 95 % interval")
        axes.set_title(f"{data}, {detector}")
        files.append(directory / f"evidence_{data}_{detector}.png")
        figure.savefig(files[-1], dpi=120)
    return files


# The test split -------------------------------------------------------------------------------------------------------


def look_at_test(client: Any, runs: Sequence[Run], split: str) -> int:
    """Evaluate the last weights of the runs that have no metrics of the split; returns how many these were."""
    from mgdet.inference.evaluate import evaluate_trained
    from mgdet.inference.load import load_detector
    from mgdet.training.checkpoint import CheckpointStore

    done = 0
    for run in runs:
        if f"{split}/{AP}" in run.metrics:
            continue
        store = CheckpointStore(run.uri)
        kept = store.complete()
        if not kept:
            raise ConfigError(f"{run.name}: no checkpoint below {run.uri}, so it cannot be looked at on {split}")
        last = str(store.path(kept[-1]))
        print(f"{run.name}: {last}", flush=True)
        metrics = evaluate_trained(load_detector(last), split=split).metrics
        for key, value in metrics.items():
            if math.isfinite(value):
                client.log_metric(run.run_id, mlflow_name(f"{split}/{key.removeprefix('val/')}"), value)
        done += 1
    return done


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a sub-command; 2 where something can be mended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("test", "page", "arm"))
    parser.add_argument("arm", nargs="?", help="of `arm`: the name of the assigner")
    parser.add_argument("settings", nargs="*", help="of `arm`: key=value of the sweep or of its experiment")
    parser.add_argument("--study", default="bccd_retinanet", help="of `arm`: one of configs/studies (%(default)s)")
    parser.add_argument("--store", default="auto", help="MLflow's tracking URI; default: as mgdet's")
    parser.add_argument("--experiment", default=EXPERIMENT, help="of MLflow (default: %(default)s)")
    parser.add_argument("--split", default=SPLIT, help="whose metrics are shown (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("docs/evidence.md"))
    args = parser.parse_intermixed_args(arguments)
    try:
        client = connect(resolve_uri(args.store), 60, 2)
        if args.command == "arm":
            if args.arm is None:
                raise ConfigError("arm: which assigner? Give its name, such as `arm mine plugins=[mine]`")
            train_arm(client, args)
        runs = read_runs(client, args.experiment)
        if args.command in ("test", "arm"):
            print(f"{look_at_test(client, runs, args.split)} of {len(runs)} runs were looked at on {args.split}")
            if args.command == "test":
                return 0
            runs = read_runs(client, args.experiment)
        missing = [run.name for run in runs if f"{args.split}/{AP}" not in run.metrics]
        if missing or not runs:
            raise ConfigError(
                f"{len(missing)} of {len(runs)} runs have no {args.split}/{AP}, such as {missing[:3]}: run "
                "`python benchmarks/study.py test` first, or give --split val"
            )
        found = tables(runs)
        pictures = args.out.parent / "pictures"
        pictures.mkdir(parents=True, exist_ok=True)
        lines = list(page(found, args.split, "python benchmarks/study.py page"))
        for file in draw(found, args.split, pictures):
            lines.append(f"\n![{file.stem}](pictures/{file.name})")
        args.out.write_text("\n".join(lines) + "\n")
    except (MgdetError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
