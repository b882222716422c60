"""Kill a random part of a training, or of a sweep, every few seconds, and compare it with an undisturbed one.

    python benchmarks/chaos.py train --kills 12 --every 10 --seed 0 --directory /tmp/chaos
    python benchmarks/chaos.py sweep --kills 10 --every 15 --seed 0 --directory /tmp/chaos

The job runs twice on this machine: undisturbed, then losing its processes. The seconds between two faults count from
the moment that a new worker has logged a step, so that each fault meets a training that moves. Whenever the job ends
with another status than 0, the same command is run again, which is all that its user would do.

Compared bit for bit is what `run_outcome.py` says: weights, metrics, states. What cannot be equal is left out there:
times and what is measured by time. The job is chosen so that the rest can be. It runs on the CPU with one thread and a
fixed number of workers. It logs every step: a point that is the mean of several steps begins anew where a restart falls
between them. The sweep's values come from a grid: a sampler that starts again draws new trials from another seed.

Exit status 0: all faults took place, the job went on after each of them, and nothing differs. 1: otherwise.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import psutil
from run_outcome import Result, differences, journals, result

JOBS = Path(__file__).resolve().parents[1] / "jobs"
SHOWN = 30
"""Differences that are printed."""
TRAINING = """
name: training
storage: runs
data:
  uri: ../shapes
  generate: {train: 48, val: 12, size: 64}
  transform: {resize: {name: fixed, height: 64, width: 64}, hflip: 0.5}
  loader: {workers: 1}
model:
  {name: retinanet, backbone: resnet18, norm: gn, channels: 32, anchors: {sizes: [8, 16, 32, 64, 128], scales: 1}}
assigner: {name: mutual_guidance}
train:
  batch_size: 2
  optimizer: {name: adamw, lr: 1.0e-3}
  schedule: {name: cosine}
  ema: {enabled: true, decay: 0.9}
  evaluate_every: 3
  log_every: 1
  checkpoint_every_steps: 10
cluster: {workers: 2, cpus_per_worker: 0.5, gpu: false, max_failures: -1, collective_timeout_s: 15}
tracking: {uri: "sqlite:///mlflow.db"}
"""
SWEEP = """
name: sweep
base: train.yaml
set: {cluster.workers: 1, cluster.cpus_per_worker: 1}
space: {train.optimizer.lr: {grid: [1.0e-4, 3.0e-4, 1.0e-3, 3.0e-3]}}
scheduler: {name: none}
searcher: {name: random}
concurrent: 2
max_failures: 100
"""


class Fault(NamedTuple):
    """How a part is lost."""

    title: str
    """In the title of its process; empty: the driver."""
    signal: int = signal.SIGKILL
    loader: bool = False
    """Not that process, but one that decodes images for it."""
    truncate: bool = False
    """Before the job is started again, the newest checkpoint is cut in half."""


COMMON = {
    "worker": Fault("RayTrainWorker"),
    "worker hung": Fault("RayTrainWorker", signal.SIGSTOP),
    "loader process": Fault("RayTrainWorker", loader=True),
    "Train controller": Fault("TrainController"),
    "raylet": Fault("raylet/raylet"),
    "gcs_server": Fault("gcs/gcs_server"),
    "driver": Fault(""),
}
FAULTS = {
    "train": {
        **COMMON,
        "driver, checkpoint truncated": Fault("", truncate=True),
        "driver, SIGTERM": Fault("", signal.SIGTERM),
    },
    "sweep": {**COMMON, "trial's process": Fault("ImplicitFunc")},
}
SCRIPTS = {"train": "train.py", "sweep": "tune.py"}


@dataclass
class Hit:
    """A fault that took place."""

    fault: str
    time: float
    steps: dict[str, int]
    """The last step that each training had logged."""
    seconds: float | None = None
    """Until a new worker logged a step, or the job came to its end."""
    repeated: int = 0
    """Steps that were logged again."""


class Job:
    """`jobs/train.py` or `jobs/tune.py` in a directory of its own, and all processes that it makes."""

    def __init__(self, kind: str, directory: Path, epochs: int) -> None:
        self.directory, self.starts = directory, 0
        self.command = [sys.executable, str(JOBS / SCRIPTS[kind]), f"{kind}.yaml", f"train.epochs={epochs}"]
        self.process: subprocess.Popen[bytes] | None = None
        self.known: set[psutil.Process] = set()
        """Every process of the job that was ever seen and is not gone."""
        directory.mkdir(parents=True)
        (directory / "train.yaml").write_text(TRAINING)
        (directory / "sweep.yaml").write_text(SWEEP)

    def start(self) -> subprocess.Popen[bytes]:
        """Run the command (again)."""
        self.starts += 1
        with open(self.directory / f"log-{self.starts:02d}.txt", "w") as log:
            self.process = subprocess.Popen(
                self.command,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                env={**os.environ, "OMP_NUM_THREADS": "1", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"},
                start_new_session=True,  # Ctrl-C is for this script, which then ends the job
            )
        return self.process

    def look(self) -> None:
        """Remember its processes: a child whose parent has died is found no more."""
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                driver = psutil.Process(self.process.pid)
                self.known |= {driver, *driver.children(recursive=True)}
        self.known = {p for p in self.known if alive(p)}

    def clear(self, seconds: float) -> list[str]:
        """Wait for the processes to end, then kill the rest by their ids; what those were."""
        deadline = time.time() + seconds
        self.look()
        while self.known and time.time() < deadline:
            time.sleep(0.1)
            self.look()
        left = []
        for process in self.known:
            with contextlib.suppress(psutil.NoSuchProcess):
                left.append(" ".join(process.cmdline())[:100])
                process.kill()
        if self.process is not None:
            self.process.wait()
        return left

    def victims(self, fault: Fault) -> list[psutil.Process]:
        """The living processes that it may hit."""
        found = []
        driver = self.process.pid if self.process else None
        for process in sorted(self.known, key=lambda p: p.pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                title = "".join(process.cmdline()[:1])  # a process that ends has none
                if fault.title not in title or (not fault.title and process.pid != driver):
                    continue
                servers = process.children() if fault.loader else []  # loaders are children of a fork server
                found += [p for s in servers for p in s.children()] if fault.loader else [process]
        return found

    def workers(self) -> set[psutil.Process]:
        """The training workers."""
        return set(self.victims(Fault("RayTrainWorker")))

    def writers(self) -> set[psutil.Process]:
        """The workers that have logged a step since they began."""
        found = set()
        for worker in self.workers():
            with contextlib.suppress(psutil.NoSuchProcess):
                if any(f.path.endswith("metrics.jsonl") for f in worker.open_files()):
                    found.add(worker)
        return found

    def truncate(self) -> None:
        """Cut the newest checkpoint in half."""
        files = sorted(self.directory.glob("runs/**/checkpoints/*.pt"), key=lambda p: p.stat().st_mtime)
        for path in files[-1:]:
            os.truncate(path, path.stat().st_size // 2)


def alive(process: psutil.Process) -> bool:
    """Neither gone nor a zombie."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class Chaos:
    """Runs a job to its end and disturbs it meanwhile."""

    def __init__(self, job: Job, faults: Mapping[str, Fault], kills: int, every: float, seed: int, patience: float):
        self.job, self.faults, self.kills, self.every, self.patience = job, faults, kills, every, patience
        self.random = random.Random(seed)
        self.round: list[str] = []
        """The faults that come before any of them comes again, in this order as far as their victims are there."""
        self.hits: list[Hit] = []
        self.problems: list[str] = []
        self.seconds = 0.0
        self.before: set[psutil.Process] = set()
        """The workers at the last fault: what they still do is no sign that it is over."""
        self.waiting_since, self.went_on = 0.0, 0.0

    def run(self) -> Result:
        """Until the job ends with status 0; what it came to."""
        begin = time.time()
        try:
            while (status := self._one_start()) != 0:
                say(f"the job ended with status {status}; the same command again")
            self._settle()
        finally:
            self.job.clear(0)
        self.seconds = time.time() - begin
        return result(self.job.directory)

    def _one_start(self) -> int:
        process, hits = self.job.start(), len(self.hits)
        self.waiting_since, self.went_on = time.time(), 0.0
        while process.poll() is None:
            self.job.look()
            now = time.time()
            if self.went_on:
                if len(self.hits) < self.kills and now >= self.went_on + self.every:
                    self._strike()
            elif self.job.writers() - self.before:
                self._mark(now)
            elif now > self.waiting_since + self.patience:
                self._problem(f"nothing was logged for {self.patience:g} s, so the driver was killed")
                process.kill()
            time.sleep(0.1)
        if process.returncode == 0 and not self.went_on:
            self._mark(time.time())
        if left := self.job.clear(10):
            say(f"    outlived the driver by 10 s and were killed: {', '.join(left)}")
        if process.returncode and len(self.hits) == hits:
            self._problem(f"start {self.job.starts} ended with status {process.returncode} without a fault in it")
            if len(self.problems) > 5:
                raise SystemExit(f"it does not go on; the logs are in {self.job.directory}")
        elif process.returncode and self.faults[self.hits[-1].fault].truncate:
            self.job.truncate()
        return process.returncode

    def _mark(self, now: float) -> None:
        self.went_on = now
        if self.hits and self.hits[-1].seconds is None:
            self.hits[-1].seconds = now - self.hits[-1].time

    def _strike(self) -> None:
        self.round = self.round or self.random.sample(sorted(self.faults), len(self.faults))
        victims = {name: self.job.victims(self.faults[name]) for name in self.round}
        name = next((name for name in self.round if victims[name]), None)
        if name is None:
            return
        self._settle()
        steps = {run: last for run, (_, _, last) in journals(self.job.directory).items()}
        self.before = self.job.workers()
        with contextlib.suppress(psutil.NoSuchProcess):
            self.random.choice(victims[name]).send_signal(self.faults[name].signal)
            self.round.remove(name)
            self.hits.append(Hit(name, time.time(), steps))
            self.waiting_since, self.went_on = time.time(), 0.0
            reached = ", ".join(f"{run} at step {step}" for run, step in steps.items())
            say(f"{len(self.hits)}/{self.kills} {name}: {reached}")

    def _settle(self) -> None:
        """What was done again since the last fault is its cost."""
        if self.hits:
            replays = sum(replays for _, replays, _ in journals(self.job.directory).values())
            self.hits[-1].repeated = replays - sum(h.repeated for h in self.hits[:-1])
            say(f"    went on after {self.hits[-1].seconds:.1f} s, {self.hits[-1].repeated} steps done again")

    def _problem(self, text: str) -> None:
        self.problems.append(text)
        say(f"PROBLEM: {text}")


def say(text: str) -> None:
    """With the time."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def table(hits: Iterable[Hit]) -> str:
    """What each kind of fault cost, in markdown."""
    hits = list(hits)
    rows = [
        "| victim | kills | s until it went on: median | max | steps repeated: median | max |",
        "|---|---|---|---|---|---|",
    ]
    for fault in [*dict.fromkeys(sorted(h.fault for h in hits)), "all"]:
        found = [h for h in hits if fault in ("all", h.fault)]
        seconds, repeated = [h.seconds or 0.0 for h in found], [h.repeated for h in found]
        rows.append(
            f"| {fault} | {len(found)} | {statistics.median(seconds):.1f} | {max(seconds):.1f} | "
            f"{statistics.median(repeated):g} | {max(repeated)} |"
        )
    return "\n".join(rows)


def main() -> int:
    """0: nothing was lost; 1: something was, or fewer faults took place than were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=list(FAULTS))
    parser.add_argument("--kills", type=int, default=12, help="faults in all (%(default)s)")
    parser.add_argument("--every", type=float, default=10, help="seconds of training between two (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of faults (%(default)s)")
    parser.add_argument("--epochs", type=int, default=40, help="of 24 steps, in each training (%(default)s)")
    parser.add_argument(
        "--patience", type=float, default=300, help="so many seconds without a step: hung (%(default)s)"
    )
    parser.add_argument("--directory", type=Path, required=True, help="gets everything, and chaos-<kind>.md and .json")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # through every `finally`
    directory = args.directory.absolute()
    paths = [directory / f"{args.kind}-{how}" for how in ("undisturbed", "disturbed")]
    if found := [path for path in paths if path.exists()]:
        parser.error(f"{found[0]} exists; give another --directory")
    runs, results = [], []
    for path, kills in zip(paths, (0, args.kills), strict=True):
        say(f"{path}")
        job = Job(args.kind, path, args.epochs)
        runs.append(Chaos(job, FAULTS[args.kind], kills, args.every, args.seed, args.patience))
        results.append(runs[-1].run())
    undisturbed, disturbed = runs
    problems = [*undisturbed.problems, *disturbed.problems]
    if len(disturbed.hits) < args.kills:
        problems.append(f"only {len(disturbed.hits)} of {args.kills} faults took place; more --epochs leave time")
    unequal = list(differences(*results))
    count = {part: len(values) for part, values in results[0].items()}
    equal = (
        f"equal: weights ({count['weights']} tensors), metrics ({count['metrics']} values), states ({count['states']})"
    )
    lines = [
        table(disturbed.hits) if disturbed.hits else "",
        "",
        f"undisturbed {undisturbed.seconds:.0f} s; disturbed {disturbed.seconds:.0f} s "
        f"in {disturbed.job.starts} starts",
        *([f"NOT EQUAL: {len(unequal)} differences", *unequal[:SHOWN]] if unequal else [equal]),
        *(f"problem: {problem}" for problem in problems),
    ]
    print("\n".join(["", *lines]))
    (directory / f"chaos-{args.kind}.md").write_text("\n".join([*lines, ""]))
    record = {"hits": [asdict(h) for h in disturbed.hits], "problems": problems, "differences": unequal}
    record |= {"undisturbed_s": undisturbed.seconds, "disturbed_s": disturbed.seconds, "starts": disturbed.job.starts}
    (directory / f"chaos-{args.kind}.json").write_text(json.dumps(record, indent=1))
    return 1 if unequal or problems else 0


if __name__ == "__main__":
    sys.exit(main())
