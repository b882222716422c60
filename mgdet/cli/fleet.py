"""The options of the sub-commands that a Ray cluster can carry out."""

import argparse
from typing import TYPE_CHECKING

MOST_WORKERS = 4096

if TYPE_CHECKING:  # its packages take a while to import
    from mgdet.runs.config import ClusterConfig


def add_fleet(parser: argparse.ArgumentParser, does: str) -> None:
    """Add `--workers` and what is said with it; `does` is what each of them does."""
    parser.add_argument(
        "--workers",
        metavar="N",
        type=_count,
        help=f"{does} in N processes of a Ray cluster; auto: one for each GPU, or else for each CPU",
    )
    add_where(parser)


def add_where(parser: argparse.ArgumentParser) -> None:
    """Add `--address` and `--cpus-per-worker`."""
    parser.add_argument("--address", help="of the Ray cluster (default: RAY_ADDRESS if set, else this machine alone)")
    parser.add_argument("--cpus-per-worker", metavar="N", type=_cpus, help="of each process (default 1 without a GPU)")


def fleet_of(args: argparse.Namespace) -> "ClusterConfig | None":
    """The cluster that `--workers` asks for, None without it.

    Raises:
        ConfigError: a value that is not allowed.
        DataError: options that mean nothing together.
    """
    if args.workers is None:
        refuse_where(args, "--workers")
        return None
    return cluster_of(args, args.workers)


def refuse_where(args: argparse.Namespace, needed: str) -> None:
    """Raise `DataError` where the options of `add_where` are given, although `needed` is not."""
    from mgdet.errors import DataError

    if args.address or args.cpus_per_worker is not None:
        raise DataError(f"--address and --cpus-per-worker are for a cluster: give {needed} too, or leave them out.")


def cluster_of(args: argparse.Namespace, workers: int | str, **more: object) -> "ClusterConfig":
    """The cluster that the options of `add_where` name, with so many workers. Raises `ConfigError`."""
    from mgdet.config_yaml import validate_as
    from mgdet.runs.config import ClusterConfig

    asked = {"workers": workers, "address": args.address, "cpus_per_worker": args.cpus_per_worker or "auto", **more}
    return validate_as(ClusterConfig, asked, "the command line")


def _cpus(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0.01 <= number <= MOST_WORKERS:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number from 0.01 to {MOST_WORKERS}")
    return number


def _count(text: str) -> int | str:
    if text != "auto" and not (text.isdecimal() and 1 <= int(text) <= MOST_WORKERS):
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected a number from 1 to {MOST_WORKERS}, or auto; leave it out to use this process alone"
        )
    return text if text == "auto" else int(text)
