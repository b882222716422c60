"""How long a step waits for a checkpoint, how long its writing takes, and what that costs a training.

    python benchmarks/saving.py --mib 517                 # a RetinaNet with a ResNet-50, AdamW and a moving average
    python benchmarks/saving.py --mib 190 --rate 20       # into a store that takes 20 MiB/s

Beside the saver stand a plain copy of the tensors, which is the least that a step can wait for, and the parts of a
save that nothing overlaps. "stall" is what the caller waits, "total" until the checkpoint counts. CPU seconds are those
of the process, and `waits` says how often it gave up its CPU by itself: on a shared machine only these can be compared.
The last line runs the same steps without and with one checkpoint, three times in turn.
"""

import argparse
import functools
import hashlib
import io
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from mgdet.storage import Location
from mgdet.training.checkpoint import CheckpointStore
from mgdet.training.saver import Saver, on_host

T = TypeVar("T")
ABOUT: dict[str, Any] = {"epoch": 0, "metrics": {}}


class Throttled:
    """A stream that takes `rate` bytes per second."""

    def __init__(self, stream: Any, rate: float) -> None:
        self.stream, self.rate = stream, rate

    def __enter__(self) -> "Throttled":
        return self

    def __exit__(self, *error: object) -> None:
        self.stream.close()

    def write(self, data: bytes) -> None:
        """Pass the data on, in pieces, and wait as long as a store of this speed would."""
        for start in range(0, len(data), 1 << 20):
            piece = memoryview(data)[start : start + (1 << 20)]
            self.stream.write(piece)
            time.sleep(len(piece) / self.rate)


def throttle(mib_per_s: float) -> None:
    """Let everything that is written to a storage take so long."""
    output = Location.open_output
    setattr(Location, "open_output", lambda self: Throttled(output(self), mib_per_s * 2**20))  # noqa: B010


def state_of(mib: int) -> dict[str, Any]:
    """A state of so many MiB: tensors of 1 MiB, as in a network with its optimizer."""
    return {"model": {f"weight.{i}": torch.randn(1 << 18) for i in range(mib)}, "position": {}}


def lap(name: str, work: Callable[[], T]) -> T:
    """Do the work, and print what it took."""
    before, cpu, wall = resource.getrusage(resource.RUSAGE_SELF), time.process_time(), time.perf_counter()
    result = work()
    wall, cpu, after = time.perf_counter() - wall, time.process_time() - cpu, resource.getrusage(resource.RUSAGE_SELF)
    faults, waits = after.ru_minflt - before.ru_minflt, after.ru_nvcsw - before.ru_nvcsw
    print(f"{name:<52} {wall:8.3f} s  {cpu:7.3f} s CPU  {faults:7d} faults  {waits:4d} waits", flush=True)
    return result


def steps(count: int, at: int | None, save: Callable[[], None]) -> float:
    """Wall seconds of so many steps on the CPU, with a save after step `at`."""
    a = torch.randn(384, 384)
    start = time.perf_counter()
    for step in range(count):
        for _ in range(20):
            a = torch.nn.functional.normalize(a @ a)
        if step == at:
            save()
    return time.perf_counter() - start


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=190, help="size of the state (default: %(default)s)")
    parser.add_argument("--rate", type=float, help="MiB/s that the store takes (default: as fast as it is)")
    parser.add_argument("--steps", type=int, default=200, help="steps of the last line (default: %(default)s)")
    parser.add_argument("--dir", help="where to write (default: a temporary directory)")
    args = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="saving-", dir=args.dir))
    try:
        measure(args, directory)
    finally:
        shutil.rmtree(directory)
    return 0


def measure(args: argparse.Namespace, directory: Path) -> None:
    """The copies, the parts, the saver, and the steps beside it."""
    state = state_of(args.mib)
    print(f"{args.mib} MiB, {f'a store of {args.rate:g} MiB/s' if args.rate else 'an unthrottled store'}, {directory}")
    kept = lap("copy of all tensors, new memory", lambda: on_host(state))
    lap("copy into kept buffers", lambda: on_host(state, kept))

    measure_parts(state, directory / "plain")
    if args.rate:
        throttle(args.rate)
    store = CheckpointStore(str(directory))
    lap("all in one pass, waited for (CheckpointStore.save)", lambda: store.save(state, step=1, **ABOUT))
    saver = Saver(store)
    for step, which in ((2, "first"), (3, "later")):
        start = time.perf_counter()
        lap(f"stall of the {which} save", functools.partial(saver.save, state, step=step, **ABOUT))
        saver.settle()
        print(f"{'total':<52} {time.perf_counter() - start:8.3f} s")
    without, beside = [], []
    for repeat in range(3):  # in turn, as a shared machine is not always equally fast
        without.append(steps(args.steps, None, lambda: None))
        beside.append(steps(args.steps, 0, functools.partial(saver.save, state, step=4 + repeat, **ABOUT)))
        saver.settle()
    print(f"{args.steps} steps without a save {min(without):.3f} s, with one {min(beside):.3f} s: ", end="")
    print(f"{min(without) / min(beside):.1%} of the throughput")


def measure_parts(state: dict[str, Any], file: Path) -> None:
    """What a save consists of, one after another."""

    def serialised() -> memoryview:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        return buffer.getbuffer()

    data = lap("part: serialise into memory", serialised)
    lap("part: SHA-256", lambda: hashlib.sha256(data).hexdigest())
    lap("part: write a new file", lambda: file.write_bytes(data))
    lap("part: write the same file again, cached", lambda: file.write_bytes(data))


if __name__ == "__main__":
    sys.exit(main())
