"""What a training draws for people: its last evaluation, and who learns what at its first, middle and last one."""

import logging
import time

import torch

from mgdet.config import Experiment
from mgdet.data.dataset import ShardedDataset
from mgdet.models import Detector
from mgdet.structures import unique_names
from mgdet.text import first_line
from mgdet.tracking import Tracker
from mgdet.training.evaluate import Evaluated
from mgdet.training.pictures import log_pictures
from mgdet.training.position import Position
from mgdet.training.precision import autocast
from mgdet.training.report import log_report

logger = logging.getLogger(__name__)

SHARE = 0.01
"""Of the time of a training that the microscope may take; one image is always looked at."""
MOST_IMAGES = 8
CONTROLS = ("max_iou", "center_sampling", "atss")
"""The first of these that is defined for the detector, and is not the training's own, is shown beside that."""


class Drawing:
    """On the worker that tracks a training. Nothing in it ends a training: what fails costs a warning.

    Args:
        tracker: gets what is drawn.
        experiment: of the training.
        data: the split on which it is evaluated.
        device: of the network.
    """

    def __init__(self, tracker: Tracker, experiment: Experiment, data: ShardedDataset, device: torch.device) -> None:
        self._tracker, self._experiment, self._data, self._device = tracker, experiment, data, device
        self._moments = moments(experiment.train.epochs, experiment.train.evaluate_every)
        self._began, self._spent = time.perf_counter(), 0.0
        self._last: Evaluated | None = None
        self._labels: bytes | None = None

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
            self._last = evaluated

    def finish(self) -> None:
        """Write the page of the training, once its last checkpoint is on its way."""
        if self._last is not None:
            log_report(self._tracker, self._experiment, self._data, self._last, self._labels)

    def _look(self, network: Detector, position: Position) -> None:
        """Log the microscope's page of the network as it is; `mgdet visualize` shows more of a run's checkpoints."""
        from mgdet.microscope.numbers import Findings, Moment, Picture, Shown, examine
        from mgdet.microscope.page import page
        from mgdet.microscope.pictures import draw
        from mgdet.microscope.subject import choose_images, first_defined, read_images
        from mgdet.microscope.visualize import NEAR, picture_of

        experiment, own = self._experiment, self._experiment.assigner
        layout = experiment.model.layout
        assigners = {own.name: own.resolved_for(layout), **first_defined(CONTROLS, own.name, layout)}
        until = time.perf_counter() + SHARE * (time.perf_counter() - self._began) - self._spent
        pictures: list[Picture] = []
        shown: dict[tuple[int, int], Shown] = {}
        was_training = network.training
        network.eval()
        try:
            for batch in read_images(self._data, experiment, choose_images(self._data, None)[:MOST_IMAGES]):
                here = batch.to(self._device)
                with torch.no_grad(), autocast(self._device, experiment.train.precision):
                    predictions = network(here.images, here.sizes)
                shown[0, len(pictures)] = examine(
                    predictions,
                    here.targets,
                    assigners,
                    near=NEAR,
                    ignore_overlap=experiment.train.ignore_overlap,
                    epoch=position.epoch,
                )
                pictures.append(picture_of(batch, self._data.file_name(int(batch.positions[0]))))
                if time.perf_counter() > until:
                    break
        finally:
            network.train(was_training)
        when = f"step {position.step} (epoch {position.epoch})"
        findings = Findings(
            about={
                "source": experiment.run_uri,
                "name": experiment.name,
                "network": f"as it was evaluated after {when}",
                "detector": f"{experiment.model.name} ({experiment.model.backbone}), {layout}",
                "data": f"{experiment.data.uri}, split {self._data.split}",
                "assigner": own.name,
            },
            classes=tuple(unique_names(self._data.categories)),
            points=layout.points,
            assigners=assigners,
            pictures=tuple(pictures),
            moments=(Moment(when, position.step, position.epoch),),
            shown=shown,
        )
        self._tracker.artifact(page(findings), f"microscope/epoch-{position.epoch}.html")
        self._labels = draw(findings, 0, 0)


def moments(epochs: int, every: int) -> set[int]:
    """The epochs after which the first, the middle and the last evaluation are, of one after `every` epochs."""
    evaluated = [epoch for epoch in range(1, epochs + 1) if epoch == epochs or epoch % every == 0]
    return {evaluated[0], evaluated[len(evaluated) // 2], evaluated[-1]}
