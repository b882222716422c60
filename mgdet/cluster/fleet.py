"""Predictions, evaluations and imports on a Ray cluster: Ray Data gives their portions to processes."""

import json
import logging
import os
import pickle
import sys
import threading
import time
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from mgdet.cluster.session import check_shared, scale_up, session
from mgdet.config_yaml import Overrides
from mgdet.data.formats.base import DataFormat
from mgdet.data.import_shared import ImportPlan
from mgdet.data.schema import Manifest
from mgdet.errors import ClusterError, MgdetError
from mgdet.inference.evaluate import Evaluation
from mgdet.inference.evaluate_shared import JudgingPlan
from mgdet.inference.load import Trained, read_detector
from mgdet.inference.predict import Options, Predicted
from mgdet.inference.predict_shared import PredictionPlan
from mgdet.plugins import load_plugins
from mgdet.portions import Done, Portion, Work
from mgdet.runs.config import ClusterConfig
from mgdet.runs.resolve import resolve_cluster
from mgdet.runs.resources import arithmetic, check_fits
from mgdet.text import first_line

logger = logging.getLogger(__name__)

_GOES_ON = "What is done is kept: the same command goes on."
_LEAVE_S = 1.0
"""The longest wait for lines that are on their way to the screen."""
_READERS, _READERS_S = "iter_threaded", 30.0
"""The name of the threads in which Ray Data reads its results, and the longest wait for their end."""
_MOST_BLOCKS = 4096
"""Ray Data keeps some numbers of each block; with more portions than this a block holds several."""


def predict_on_cluster(
    checkpoint: str,
    inputs: Sequence[str],
    out: str,
    config: ClusterConfig,
    *,
    ids: str | None = None,
    options: Options = Options(),  # noqa: B008  # it cannot be changed
    plugins: Sequence[str] = (),
) -> Predicted:
    """Detect in files with the processes of a cluster; see `PredictionPlan`.

    Args:
        checkpoint: as for `load_detector`.
        inputs: as for `predict`; local ones must be seen by all nodes.
        out: a directory, which must be empty, absent or of an earlier call: a local path or a `pyarrow.fs` URI.
        config: which cluster, and how many processes with how much of it.
        ids: as for `predict`.
        options: how it detects.
        plugins: as for `load_detector`.

    Raises:
        MgdetError: anything that the user can mend; its message says how. What was found stays, and the same call goes
            on with it.
    """
    load_plugins(plugins, (Path(),))
    plan = PredictionPlan(read_detector(checkpoint), inputs, out, ids=ids, options=options)
    with _cluster(config, {"--out": out}) as cluster:
        return plan.run(partial(_spread, config=cluster, plugins=plugins))


def evaluate_on_cluster(
    checkpoint: str,
    out: str,
    config: ClusterConfig,
    *,
    overrides: Overrides = (),
    data: str | None = None,
    split: str | None = None,
    plugins: Sequence[str] = (),
) -> tuple[Trained, Evaluation]:
    """Evaluate a checkpoint with the processes of a cluster; see `JudgingPlan`. Arguments and errors likewise."""
    load_plugins(plugins, (Path(),))
    plan = JudgingPlan(read_detector(checkpoint), overrides, data, split, out)
    with _cluster(config, {"--out": out, "--data": plan.dataset.uri}) as cluster:
        return plan.trained, plan.run(partial(_spread, config=cluster, plugins=plugins))


def prepare_on_cluster(
    uri: str,
    data_format: DataFormat,
    splits: Sequence[tuple[str, Sequence[str | os.PathLike[str]]]],
    config: ClusterConfig,
    **options: Any,
) -> Manifest:
    """Convert annotations and images with the processes of a cluster; see `ImportPlan`. Errors likewise.

    Args:
        uri: destination; a local one, and local images, must be seen by all nodes.
        data_format, splits, options: as for `ImportPlan`.
        config: which cluster, and how many processes with how much of it.
    """
    plan = ImportPlan(uri, data_format, splits, **options)
    with _cluster(config, {"the directory of --out": str(plan.target.parent)}) as cluster:
        return plan.run(partial(_spread, config=cluster, plugins=()))


@contextmanager
def _cluster(config: ClusterConfig, places: dict[str, str]) -> Iterator[ClusterConfig]:
    """Connect to a cluster whose nodes see the places; gives the configuration without any `auto`."""
    with session(config) as there:
        resources = scale_up(config, there)
        cluster = _resolved(config, resources.cpus, resources.gpus)
        check_fits(cluster, resources)
        logger.info("%s", arithmetic(cluster, resources))
        check_shared(places)
        yield cluster


def _resolved(config: ClusterConfig, cpus: float, gpus: float) -> ClusterConfig:
    """The configuration without any `auto`: a process for each GPU, or else for each CPU.

    Without a GPU each process has one CPU, however many there are: how many threads compute shows in the last bits.
    """
    on_cpus = not (gpus if config.gpu == "auto" else config.gpu)
    if on_cpus and config.cpus_per_worker == "auto":
        config = config.model_copy(update={"cpus_per_worker": 1.0})
    if on_cpus and config.workers == "auto":
        each = float(config.cpus_per_worker)
        config = config.model_copy(update={"workers": max(1, int(cpus // each))})
    return resolve_cluster(config, cpus, gpus, lambda key, value, why: logger.info("%s = %s (%s)", key, value, why))


def _spread(
    work: Work, portions: Sequence[Portion], config: ClusterConfig, plugins: Sequence[str]
) -> Generator[Done, None, None]:
    """Do the portions in the connected cluster; those of a process that is lost are given to another one."""
    import ray
    import ray.data

    from mgdet.cluster.restarts import root

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # the driver's own shows images
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what happens is said here
    items = [{"portion": json.dumps(portion)} for portion in portions]
    resources = config.of_one_worker()
    threads = max(1, int(resources["CPU"]))
    rows = ray.data.from_items(items, override_num_blocks=min(len(items), _MOST_BLOCKS)).map_batches(
        _Process,
        batch_size=1,
        fn_constructor_args=([ray.put(work)], list(plugins), bool(config.gpu), threads),
        compute=ray.data.ActorPoolStrategy(size=min(int(config.most), len(portions))),
        num_cpus=resources["CPU"],
        num_gpus=resources.get("GPU", 0.0),
    )
    before, answers = threading.enumerate(), None
    try:
        answers = iter(rows.iter_rows())
        with _unsaid(b"has constructor arguments in the object store"):
            first = next(answers)
        for row in chain([first], answers):
            answer = pickle.loads(row["answer"])
            if isinstance(answer, BaseException):
                raise answer
            yield answer
    except ray.exceptions.RayError as error:
        raise ClusterError(f"the work stopped: {first_line(root(error))}. {_GOES_ON}") from error
    finally:
        if answers is not None:
            answers.close()
        # Ends the executor of an iteration that was left in the middle, as Ray Data does after its own.
        rows._synchronize_progress_bar()
        _wait_for_threads(before)


def _wait_for_threads(before: Collection[threading.Thread]) -> None:
    """Wait until the threads have ended that an iteration over a dataset has started since there were those `before`.

    One that went on after the end of this session would start another Ray, or end this process: Ray's core ends
    whatever process asks it for something after that.
    """
    until = time.monotonic() + _READERS_S
    for thread in threading.enumerate():
        if thread not in before and (thread.name == _READERS or type(thread).__module__.startswith("ray.data.")):
            thread.join(max(0.0, until - time.monotonic()))
            if thread.is_alive():
                logger.debug("%s of Ray Data has not ended", thread.name)


@contextmanager
def _unsaid(text: bytes) -> Iterator[None]:
    """Keep lines with this text off the screen within the block.

    Ray's core calls the way in which Ray Data starts each of its actors an error, writes that past Python, and has no
    option not to. The reference that it misses lives as long as the prediction.
    """
    sys.stderr.flush()
    shown, (end, begin) = os.dup(2), os.pipe()

    def pass_on() -> None:
        while lines := os.read(end, 1 << 16):
            os.write(shown, b"".join(line for line in lines.splitlines(keepends=True) if text not in line))

    thread = threading.Thread(target=pass_on, name="unsaid", daemon=True)
    os.dup2(begin, 2)
    os.close(begin)
    thread.start()
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(shown, 2)  # which closes the last way into the pipe, so that its reader ends
        thread.join(_LEAVE_S)
        if not thread.is_alive():  # otherwise a process that was started meanwhile may still write there
            os.close(end)
            os.close(shown)


class _Process:
    """One of the processes: does one portion after another.

    Args:
        work: a reference to the work in a list, so that Ray passes it on as it is.
        plugins: which it needs.
        gpu: whether it computes on the GPU that Ray gave it.
        threads: which compute, without a GPU.
    """

    def __init__(self, work: list[Any], plugins: list[str], gpu: bool, threads: int) -> None:
        import ray

        load_plugins(plugins)
        torch.set_num_threads(threads)
        self._work: Work = ray.get(work[0])
        self._work.begin(torch.device("cuda" if gpu else "cpu"))

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        return {"answer": [pickle.dumps(self._answer(*json.loads(text))) for text in batch["portion"]]}

    def _answer(self, number: int, images: int, content: Any) -> Done | MgdetError:
        """What was done, or an error: of one that is raised Ray Data keeps the text alone."""
        try:
            return self._work(Portion(number, images, content))
        except MgdetError as error:
            return error
        except Exception as error:
            logger.exception("portion %d", number)
            return ClusterError(f"the work stopped: {type(error).__name__}: {first_line(error)}. {_GOES_ON}")
