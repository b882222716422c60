"""Where the seconds go from `mgdet train` to the first step, with Ray and its workers.

    python benchmarks/start.py                   # two workers, three starts, the median of each part
    python benchmarks/start.py --workers 1 --starts 5

A training of generated shapes is started as a user starts it and ended after its first step. It is only watched from
outside: when its processes appear, and how many seconds of a processor each of them has used by then. The journal says
when the first step was done. Other work on the machine makes everything longer, because Ray's workers have a low
priority.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

LONGEST_S = 300
PARTS = {
    "imports of the driver, configuration, data": "gcs_server",
    "Ray's session": "ray::IDLE",
    "the run is opened, its controller begins": "ray::TrainController",
    "imports of the controller, placing of the workers": "ray::RayTrainWorker",
    "imports of the workers, process group, network, data, first step": "",
}
"""Each part, and the process whose appearance ends it; the last one ends with the first step."""
CONFIG = """
name: start
storage: runs
data:
  uri: shapes
  generate: {train: 16, val: 4, size: 64}
  transform: {resize: {name: fixed, height: 64, width: 64}}
model: {name: retinanet, backbone: resnet18, channels: 64, weights: none}
assigner: {name: mutual_guidance}
train: {batch_size: 4, epochs: 1000, log_every: 1, evaluate_every: 1000}
tracking: {enabled: false}
"""


def processes(driver: psutil.Process) -> Iterator[tuple[str, psutil.Process]]:
    """The driver and all that came of it, each with its title."""
    for process in (driver, *driver.children(recursive=True)):
        try:
            yield "driver" if process == driver else " ".join(process.cmdline()), process
        except psutil.NoSuchProcess:
            continue


def start(directory: Path, workers: int) -> tuple[list[float], dict[str, float]]:
    """Seconds of each part, and the processor's seconds of each kind of process at the first step."""
    journal = directory / "runs" / "start" / "metrics.jsonl"
    command = [sys.executable, "-m", "mgdet", "train", "start.yaml", f"cluster.workers={workers}"]
    ends: list[float] = []
    with open(directory / "log", "w") as log:
        begin = time.perf_counter()
        process = subprocess.Popen(
            [*command, "cluster.cpus_per_worker=1"],
            cwd=directory,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"},
        )
        try:
            driver = psutil.Process(process.pid)
            for title in PARTS.values():
                while not any(title in found for found, _ in processes(driver)) if title else not stepped(journal):
                    if process.poll() is not None or time.perf_counter() - begin > LONGEST_S:
                        raise SystemExit(f"no first step:\n{(directory / 'log').read_text()[-2000:]}")
                    time.sleep(0.02)
                ends.append(time.perf_counter() - begin)
            used: dict[str, float] = {}
            for title, found in processes(driver):
                times = found.cpu_times()
                kind = next((p for p in ("driver", "TrainController", "RayTrainWorker") if p in title), "rest of Ray")
                used[kind] = used.get(kind, 0.0) + times.user + times.system
        finally:
            process.terminate()
            process.wait()
    return [end - before for before, end in zip([0.0, *ends], ends, strict=False)], used


def stepped(journal: Path) -> bool:
    """Whether the first step stands in the journal."""
    lines = journal.read_text().splitlines()[:1] if journal.exists() else []
    return bool(lines) and json.loads(lines[0])["step"] >= 1


def main() -> None:
    """Print two tables: parts of the start, and what the processes used."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--starts", type=int, default=3)
    args = parser.parse_args()
    parts, used = [], []
    for number in range(args.starts):
        with tempfile.TemporaryDirectory() as place:
            directory = Path(place)
            (directory / "start.yaml").write_text(CONFIG)
            one, by_process = start(directory, args.workers)
        parts.append(one)
        used.append(by_process)
        print(f"start {number + 1}: {sum(one):.1f} s", file=sys.stderr)
    print(f"| {args.workers} workers, median of {args.starts} starts | seconds |\n|---|---|")
    for title, values in zip(PARTS, zip(*parts, strict=True), strict=True):
        print(f"| {title} | {statistics.median(values):.1f} |")
    print(f"| command to first step | {statistics.median(map(sum, parts)):.1f} |")
    print("\n| process | seconds of a processor |\n|---|---|")
    for kind in used[0]:
        print(f"| {kind} | {statistics.median(each.get(kind, 0.0) for each in used):.1f} |")


if __name__ == "__main__":
    main()
