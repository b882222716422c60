"""What a training draws for people: its last evaluation, and who learns what at its first, middle and last one."""

import logging
import math
import time

import torch

from mgdet.config import Experiment
from mgdet.data.dataset import ShardedDataset
from mgdet.models import Detector
from mgdet.text import first_line
from mgdet.tracking import Tracker
from mgdet.training.evaluate import Evaluated
from mgdet.training.pictures import log_pictures
from mgdet.training.position import Position
from mgdet.training.report import log_report

logger = logging.getLogger(__name__)

SHARE = 0.01
"""Of the time of a training that the microscope may take; one image is always looked at."""
CONTROLS = ("max_iou", "center_sampling", "atss")
"""The first of these that is defined for the detector, and is not the training's own, is shown beside that."""


class Drawing:
    """On the worker that tracks a training. Nothing in it ends a training: what fails costs a warning.

    Args:
        tracker: gets what is drawn.
        experiment: of the training.
        data: the split on which it is evaluated.
        device: of the network.
        share: of the time since now that who learns what may take; None: any.
    """

    def __init__(
        self,
        tracker: Tracker,
        experiment: Experiment,
        data: ShardedDataset,
        device: torch.device,
        share: float | None = SHARE,
    ) -> None:
        self._tracker, self._experiment, self._data, self._device = tracker, experiment, data, device
        self._moments = moments(experiment.train.epochs, experiment.train.evaluate_every)
        self._share, self._began, self._spent = share, time.perf_counter(), 0.0
        self.last: Evaluated | None = None
        """The evaluation after the last epoch."""
        self.labels: bytes | None = None
        """A picture of who learns what after the last epoch, for the page of the training."""

    def after_evaluation(self, evaluated: Evaluated, network: Detector, position: Position) -> None:
        """Draw what belongs to an evaluation of `network`, after the epochs and steps of `position`."""
        if position.epoch in self._moments:
            start = time.perf_counter()
            try:
                self._look(network, position)
            except Exception as error:
                logger.warning("who learns what after epoch %d was not drawn: %s", position.epoch, first_line(error))
            taken = time.perf_counter() - start
            self._spent += taken
            self._tracker.log({"time/microscope": taken}, step=position.step)
        if position.epoch == self._experiment.train.epochs:
            start = time.perf_counter()
            log_pictures(self._tracker, evaluated, self._data.categories)
            self._tracker.log({"time/pictures": time.perf_counter() - start}, step=position.step)
            self.last = evaluated

    def take(self, evaluated: Evaluated | None, labels: bytes | None) -> None:
        """Keep for the page of the training what another process has drawn and found after the last epoch."""
        self.last, self.labels = evaluated or self.last, labels or self.labels

    def finish(self) -> None:
        """Write the page of the training, once its last checkpoint is on its way."""
        if self.last is not None:
            log_report(self._tracker, self._experiment, self._data, self.last, self.labels)

    def _look(self, network: Detector, position: Position) -> None:
        """Log the microscope's page of the network as it is; `mgdet visualize` shows more of a run's checkpoints."""
        from mgdet.microscope.numbers import Moment, Picture, Shown
        from mgdet.microscope.page import page
        from mgdet.microscope.pictures import draw
        from mgdet.microscope.subject import choose_images, first_defined, read_images
        from mgdet.microscope.visualize import findings_of, look, picture_of

        experiment, own = self._experiment, self._experiment.assigner
        layout = experiment.model.layout
        assigners = {own.name: own.resolved_for(layout), **first_defined(CONTROLS, own.name, layout)}
        now = time.perf_counter()
        until = math.inf if self._share is None else now + self._share * (now - self._began) - self._spent
        pictures: list[Picture] = []
        shown: dict[tuple[int, int], Shown] = {}
        was_training = network.training
        network.eval()
        try:
            for batch in read_images(self._data, experiment, choose_images(self._data, None)):
                shown[0, len(pictures)] = look(network, batch, experiment, self._device, assigners, position.epoch)
                pictures.append(picture_of(batch, self._data.file_name(int(batch.positions[0]))))
                if time.perf_counter() > until:
                    break
        finally:
            network.train(was_training)
        when = f"step {position.step} (epoch {position.epoch})"
        about = {"source": experiment.run_uri, "network": f"as it was evaluated after {when}"}
        moment = Moment(when, position.step, position.epoch)
        findings = findings_of(about, experiment, self._data, assigners, tuple(pictures), (moment,), shown)
        self._tracker.artifact(page(findings), f"microscope/epoch-{position.epoch}.html")
        if position.epoch == experiment.train.epochs:
            self.labels = draw(findings, 0, 0)


def moments(epochs: int, every: int) -> set[int]:
    """The epochs after which the first, the middle and the last evaluation are, of one after `every` epochs."""
    evaluated = [*range(every, epochs, every), epochs]
    return {evaluated[0], evaluated[len(evaluated) // 2], evaluated[-1]}
