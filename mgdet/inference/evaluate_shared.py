"""An evaluation in portions of a split, which processes share: the numbers are those of one process."""

import io
import logging
from collections.abc import Sequence

import numpy as np
import torch

from mgdet.config_yaml import Overrides, settings_of
from mgdet.data.dataset import ShardedDataset
from mgdet.data.fingerprint import fingerprint
from mgdet.data.loader import build_eval_loader
from mgdet.data.order import eval_batches
from mgdet.data.pictures import Pictures
from mgdet.evaluation.coco import CocoAP
from mgdet.evaluation.evaluator import EvaluationResult, Evaluator
from mgdet.evaluation.matching import Ints
from mgdet.evaluation.metric import Arrays
from mgdet.inference.evaluate import Evaluation, described, evaluation_of, open_split
from mgdet.inference.load import Read, Trained, build_detector
from mgdet.inference.positives import TASKS, PositiveCounts
from mgdet.inference.results import ResultFiles
from mgdet.lease import OWNER, owned
from mgdet.portions import PORTIONS, SIZE, Done, Portion, Portions, Spread, Work, carry_out
from mgdet.storage import locate
from mgdet.training.distributed import World
from mgdet.training.evaluate import Watch, see

logger = logging.getLogger(__name__)

_POSITIVES = "positives"


class Judging(Work):
    """Evaluates batches of a split.

    Args:
        read: the checkpoint.
        overrides: as for `load_detector`.
        data: the root of the data set.
        split: its name.
        count_positives: also count the priors that would learn from each object.
        kept: where the results are kept.
    """

    def __init__(
        self, read: Read, overrides: Overrides, data: str, split: str, count_positives: bool, kept: Portions
    ) -> None:
        self.read, self.overrides, self.data, self.split = read, overrides, data, split
        self.count_positives, self.kept = count_positives, kept

    def begin(self, device: torch.device) -> None:
        """Build the detector and open the split. Raises what `evaluate_trained` raises."""
        self._trained = build_detector(self.read, self.overrides, device)
        self._dataset = open_split(self._trained, self.data, self.split)
        self._truth = self._dataset.ground_truth()
        self._batches = _batches(self._dataset, self._trained)
        self._counts = PositiveCounts(self._truth, self._trained.experiment.assigner) if self.count_positives else None

    def __call__(self, portion: Portion) -> Done:
        """Evaluate a portion and keep what the metrics need of it. Raises `DataError`."""
        trained, data = self._trained, self._trained.experiment.data
        first, last = portion.content
        loader = build_eval_loader(
            self._dataset,
            data.transform,
            data.loader,
            batch_size=trained.batch_size,
            world=trained.shards,
            batches=self._batches[first:last],
            pin_memory=trained.device.type == "cuda",
        )
        evaluator = Evaluator(self._truth, trained.experiment.evaluation)
        watch: dict[str, Watch] = {}
        if (counts := self._counts) is not None:
            counts.clear()
            watch["watch"] = counts
        world = World(0, 1, trained.device)
        see(trained.detector, loader, evaluator, world, trained.experiment.train.precision, **watch)
        arrays = evaluator.state()
        if counts is not None:
            arrays |= {f"{_POSITIVES}/{task}": _sparse(values) for task, values in counts.counts.items()}
        file = io.BytesIO()
        np.savez(file, **arrays)  # type: ignore[arg-type]  # the stub takes each for the option `allow_pickle`
        self.kept.write(portion.number, file.getvalue())
        return Done(portion.images)


def _sparse(values: Ints) -> Ints:
    """`[2, K]`: where the values are not 0, and these."""
    places = np.flatnonzero(values)
    return np.stack([places, values[places]])


class JudgingPlan:
    """The evaluation of a checkpoint in portions; see `run`.

    Args:
        read: from `read_detector`; its plugins must be loaded.
        overrides: as for `load_detector`.
        data, split: as for `evaluate_trained`; whoever does a portion must see them too.
        out: the directory of the results, a local path or a `pyarrow.fs` URI.

    Raises:
        DataError, ConfigError, CheckpointError: as for `load_detector` and `evaluate_trained`.
    """

    def __init__(self, read: Read, overrides: Overrides, data: str | None, split: str | None, out: str) -> None:
        self.read, self.overrides, self.out, self.place = read, overrides, out, locate(out)
        self.trained = build_detector(read, overrides, torch.device("cpu"))
        logger.info("%s", self.trained)
        self.dataset = open_split(self.trained, data, split)
        self.files = ResultFiles.below(out)
        self.portions = _portions(_batches(self.dataset, self.trained), self.trained.batch_size)

    def run(self, spread: Spread) -> Evaluation:
        """Evaluate, and write the files. After a stop the same plan goes on; the numbers do not depend on `spread`.

        Raises:
            DataError: as for `evaluate_trained`; or `out` has portions of other work.
            Interrupted: it was asked to stop, and keeps what is done.
            OwnedError: another process writes to `out`.
        """
        trained, dataset = self.trained, self.dataset
        pictures, truth = Pictures(dataset), dataset.ground_truth()
        count = not pictures.are_cut
        about = {
            "checkpoint": self.read.path,
            "weights": self.read.digest(),
            "overrides": {key: value for key, value, _ in settings_of(self.overrides)},
            "split": dataset.split,
            "data": fingerprint(dataset.manifest, [dataset.split]),
            "portions": len(self.portions),
        }
        with owned(self.place / OWNER, f"the evaluation {self.out}"):
            kept = Portions(self.place / PORTIONS, about, len(self.portions))
            work = Judging(self.read, self.overrides, dataset.uri, dataset.split, count, kept)
            carry_out("evaluated", spread, work, self.portions, kept)
            states = [_loaded(data) for data in kept.read()]
            result: EvaluationResult = Evaluator(truth, trained.experiment.evaluation).merge(states).compute()
            done = evaluation_of(result.metrics(), trained, dataset)
            positives = _positives(states, len(truth.boxes)) if count else {}
            self.files.write(described(trained, done), result.of(CocoAP), pictures, positives)
            kept.remove()
        return done


def _batches(dataset: ShardedDataset, trained: Trained) -> list[list[int]]:
    """The rows of the split in each batch of the training's own evaluation."""
    return eval_batches(dataset.num_images, trained.batch_size, trained.shards)


def _portions(batches: Sequence[list[int]], batch_size: int) -> list[Portion]:
    """Portions of these batches, each with the first one and the one after its last."""
    size = max(1, SIZE // batch_size)
    return [
        Portion(number, sum(map(len, batches[first : first + size])), (first, min(first + size, len(batches))))
        for number, first in enumerate(range(0, len(batches), size))
    ]


def _loaded(data: bytes) -> Arrays:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return dict(arrays)


def _positives(states: Sequence[Arrays], objects: int) -> dict[str, Ints]:
    counts: dict[str, Ints] = {}
    for task in TASKS:
        counts[task] = np.zeros(objects, dtype=np.int64)
        for state in states:
            places, values = state[f"{_POSITIVES}/{task}"]
            counts[task][places] = values
    return counts
