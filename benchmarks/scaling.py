"""From one GPU to 1,024 on paper: throughput, money, the first bottleneck and what faults cost.

    python benchmarks/scaling.py measure my.yaml > mine.yaml               # one's own inputs, on one GPU, minutes
    torchrun --nproc-per-node 2 benchmarks/scaling.py network > here.yaml  # what connects these processes
    python benchmarks/scaling.py predict mine.yaml --network ethernet-100g --price 2.5
    python benchmarks/scaling.py check mine.yaml --network here.yaml runs/one runs/two

`check` compares the prediction with trainings that have run, under Ray or torchrun, by the images per second in their
`metrics.jsonl`. docs/scaling.md explains the model; what was not measured stands under the table, with its source.
"""

import argparse
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml
from scaling_model import NETWORKS, Inputs, Network, Prediction, nodes_of, predict

from mgdet.config_yaml import read_yaml, validate_as
from mgdet.errors import ConfigError, MgdetError
from mgdet.text import aligned

SIZES = [2**k for k in range(11)]
IMAGES_PER_S = "train/images_per_s"


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out the command; 2 where something is wrong with what it was given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    measure = commands.add_parser("measure", help="measure the inputs of a configuration on this machine")
    measure.add_argument("config")
    measure.add_argument("overrides", nargs="*", metavar="key=value")
    measure.add_argument("--steps", type=int, default=20, help="that are measured (default: %(default)s)")
    network = commands.add_parser("network", help="measure what connects the processes that torchrun has started")
    network.add_argument("--bytes", type=int, default=100 << 20, help="of the large message (default: %(default)s)")
    paper = commands.add_parser("predict", help="predict any number of GPUs")
    paper.add_argument("inputs", type=Path)
    paper.add_argument("--gpus", type=int, nargs="+", default=SIZES)
    paper.add_argument("--storage", type=float, default=math.inf, help="bytes per second that all nodes read together")
    paper.add_argument("--price", type=float, help="of a GPU for an hour, in the currency of the answer")
    paper.add_argument("--picture", type=Path, help="a file for throughput and lost shares by the number of GPUs")
    check = commands.add_parser("check", help="compare with trainings that have run")
    check.add_argument("inputs", type=Path)
    check.add_argument("runs", type=Path, nargs="+", help="their directories")
    for command in (paper, check):
        command.add_argument("--network", default="ethernet-100g", help=f"a file, or one of {', '.join(NETWORKS)}")
    args = parser.parse_args(arguments)
    try:
        print(COMMANDS[args.command](args))
    except MgdetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _measure(args: argparse.Namespace) -> str:
    from scaling_inputs import measure  # imports torch

    return _yaml(measure(args.config, args.overrides, args.steps))


def _network(args: argparse.Namespace) -> str:
    from scaling_inputs import measure_network

    found = measure_network(args.bytes)
    return _yaml(found) if found else ""


def _yaml(found: Inputs | Network) -> str:
    return yaml.safe_dump(found.model_dump(), sort_keys=False, width=120).rstrip()


def read_network(name: str) -> Network:
    """The network of that name, or in that file. Raises `ConfigError`."""
    if name in NETWORKS:
        return NETWORKS[name]
    if not Path(name).suffix:
        raise ConfigError(f"--network {name}: expected a YAML file, or one of {', '.join(NETWORKS)}")
    return validate_as(Network, read_yaml(name), name)


def read_inputs(path: Path) -> Inputs:
    """The inputs in a file that `measure` wrote or a person did. Raises `ConfigError`."""
    inputs = validate_as(Inputs, read_yaml(path), str(path))
    if unknown := inputs.assumed.keys() - Inputs.model_fields.keys():
        raise ConfigError(f"{path}: assumed names {', '.join(sorted(unknown))}, which is no input")
    return inputs


def _predict(args: argparse.Namespace) -> str:
    inputs, network = read_inputs(args.inputs), read_network(args.network)
    if wrong := [str(n) for n in args.gpus if n < 1]:
        raise ConfigError(f"--gpus {' '.join(wrong)}: expected numbers from 1")
    if not args.storage > 0:
        raise ConfigError(f"--storage {args.storage:g}: expected bytes per second, more than 0")
    found = [predict(inputs, n, network, args.storage) for n in args.gpus]
    if args.picture:
        from scaling_picture import draw

        draw(found, args.picture)
    return "\n".join([*table(found, network, args.price), "", *assumptions(inputs, args)])


def table(found: Sequence[Prediction], network: Network, price: float | None) -> list[str]:
    """One line for each number of GPUs."""
    head = ["GPUs", "nodes", "batch", "images/s", "useful", "hours", "GPU hours", *(["money"] if price else [])]
    head += ["first bottleneck", "fault within an hour", "minutes lost to faults", "checkpoint every"]
    rows = [head]
    for p in found:
        rows.append(
            [
                f"{p.gpus:,}",
                str(nodes_of(p.gpus, network)),
                f"{p.batch:,}",
                f"{p.images_per_s:,.0f}" if p.images_per_s >= 100 else f"{p.images_per_s:.1f}",
                f"{p.useful:.0%}",
                f"{p.hours:.2f}",
                f"{p.gpu_hours:,.1f}",
                *([f"{p.gpu_hours * price:,.0f}"] if price else []),
                f"{p.bottleneck}" + (f" ({p.lost[p.bottleneck]:.0%})" if p.bottleneck in p.lost else ""),
                f"{p.fault_per_hour:.2%}",
                f"{p.lost_to_faults_hours * 60:.2f}",
                f"{p.checkpoint_every_s / 60:.1f} min = {max(1, round(p.checkpoint_every_s / p.step_s)):,} steps",
            ]
        )
    return aligned(rows)


def assumptions(inputs: Inputs, args: argparse.Namespace) -> list[str]:
    """What of the prediction was not measured, with its source."""
    lines = [f"inputs: {inputs.about or args.inputs}", f"network: {args.network}, {read_network(args.network).source}"]
    for name, source in inputs.assumed.items():
        lines.append(f"ASSUMED {name} = {getattr(inputs, name):g}: {source}")
    if args.price:
        lines.append(f"ASSUMED price = {args.price:g} for a GPU and hour: --price")
    if math.isfinite(args.storage):
        lines.append(f"ASSUMED storage = {args.storage:g} bytes per second: --storage")
    return lines


def _check(args: argparse.Namespace) -> str:
    inputs, network = read_inputs(args.inputs), read_network(args.network)
    rows = [["run", "workers", "predicted images/s", "measured images/s", "measured / predicted"]]
    for run in args.runs:
        workers, measured = observed(run)
        predicted = training_rate(inputs, workers, network)
        rows.append(
            [run.name, str(workers), f"{predicted:.2f}", f"{measured:.2f}", f"{measured / predicted:.2f}"],
        )
    return "\n".join(aligned(rows))


def training_rate(inputs: Inputs, workers: int, network: Network) -> float:
    """Predicted images per second of the steps alone, as `train/images_per_s` counts them."""
    found = predict(inputs, workers, network)
    return found.batch / found.step_s


def observed(run: Path) -> tuple[int, float]:
    """The number of workers of a run, and the median of its images per second.

    Of each stretch of steps, the first value counts the start of the loader as well and is left out. Raises
    `ConfigError` where the run has no such values.
    """
    from mgdet.tracking.journal import points_of
    from mgdet.training.checkpoint import CheckpointStore

    journal = run / "metrics.jsonl"
    if not journal.exists():
        raise ConfigError(f"{run}: expected the directory of a training, with metrics.jsonl (tracking.enabled=true)")
    rates = [p.value for p in points_of(journal.read_bytes()) if p.key == IMAGES_PER_S and math.isfinite(p.value)]
    found = CheckpointStore(str(run)).latest()
    if len(rates) < 3 or found is None:
        raise ConfigError(f"{run}: expected a checkpoint and at least three values of {IMAGES_PER_S}; train for longer")
    return max(1, len(found[1]["generators"])), statistics.median(rates[1:])


COMMANDS = {"measure": _measure, "network": _network, "predict": _predict, "check": _check}

if __name__ == "__main__":
    sys.exit(main())
