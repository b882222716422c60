"""By what each assigner ranks the priors of an object for each task: the assigners' own criteria, with names."""

from typing import NamedTuple

from torch import Tensor

from mgdet.assign import (
    ATSS,
    DDOD,
    DLA,
    DW,
    PAA,
    Assigner,
    AutoAssign,
    CenterSampling,
    FreeAnchor,
    MaxIoU,
    MuSu,
    MutualGuidance,
    MutualLabeling,
    SimOTA,
    TaskAligned,
)
from mgdet.assign.criteria import class_score, confidence, prior_iou, product, regressed_iou
from mgdet.assign.mutual import MutualAssigner
from mgdet.assign.pieces import Criterion, Quality
from mgdet.assign.places import ALL, At, take
from mgdet.structures import Predictions


class Ranking(NamedTuple):
    """What ranks the priors of an object for one task, and what that is called."""

    name: str
    criterion: Criterion


class Rankings(NamedTuple):
    """Of both tasks; None where it is not known."""

    cls: Ranking | None
    loc: Ranking | None


def rankings(assigner: Assigner, predictions: Predictions) -> Rankings:
    """The criteria of an assigner without any `auto`, on detached predictions.

    A criterion is worth something everywhere, also where the method looks at candidates only; `paa`'s is that of its
    candidates. It is not known of an assigner that a plugin brings, unless it derives from one of mgdet's, of a task
    that the other one does not guide (`direction`), and of `ota` and
    `permutation`, where it is no matter of one prior and one object.
    """
    if isinstance(assigner, MutualAssigner):
        cls, loc = _names(assigner)
        criteria, guided = assigner.criteria(predictions), assigner.direction
        return Rankings(
            Ranking(cls, criteria.cls) if guided in ("both", "loc_to_cls") else None,
            Ranking(loc, criteria.loc) if guided in ("both", "cls_to_loc") else None,
        )
    if isinstance(assigner, DDOD | MuSu):
        return _of_each_task(assigner, predictions)
    both = _of_both_tasks(assigner, predictions)
    return Rankings(both, both)


def _names(assigner: MutualAssigner) -> tuple[str, str]:
    if isinstance(assigner, MutualGuidance):
        return "IoU_regressed", "IoU_amplified"
    if isinstance(assigner, MutualLabeling):
        regularised = assigner.criterion == "regularised"
        return ("u^θ · p^α" if regularised else "u"), "p · u^θα" if regularised else assigner.criterion
    return "how well it localizes", "how well it classifies"


def _of_each_task(assigner: DDOD | MuSu, predictions: Predictions) -> Rankings:
    p, u = class_score(predictions), regressed_iou(predictions)

    def ranking(name: str, powers: tuple[float, float]) -> Ranking:
        return Ranking(name, product(p, u, powers, predictions.logits))

    if isinstance(assigner, DDOD):
        cls, loc = assigner.alpha_cls, assigner.alpha_loc
        name = "p^(1-α) · u^α"
        return Rankings(ranking(name, (1 - cls, cls)), ranking(name, (1 - loc, loc)))
    alpha, theta = assigner.alpha, assigner.theta
    return Rankings(ranking("u^θ · p^α", (alpha, theta)), ranking("p · u^θα", (1.0, theta * alpha)))


def _rounded(quality: Quality) -> Quality:
    return lambda boxes, labels, at: quality(boxes, labels, at).float()


def _of_both_tasks(assigner: Assigner, predictions: Predictions) -> Ranking | None:
    priors, overlap = predictions.priors, regressed_iou(predictions)
    if isinstance(assigner, MaxIoU | ATSS | FreeAnchor | PAA):
        return Ranking("IoU_anchor", prior_iou(priors))
    if isinstance(assigner, CenterSampling):
        return Ranking("1 / (1 + area) in the region", assigner.centre_region(priors, assigner.radius))
    if isinstance(assigner, DLA):
        anchor = prior_iou(priors)

        def together(boxes: Tensor, labels: Tensor, at: At) -> Tensor:
            return overlap.quality(boxes, labels, at) + anchor.quality(boxes, labels, at)

        return Ranking("u + IoU_anchor", Criterion(together))
    if isinstance(assigner, TaskAligned):
        powers = (assigner.alpha, assigner.beta)
        return Ranking("t = p^α · u^β", product(class_score(predictions), overlap, powers, predictions.logits))
    if isinstance(assigner, AutoAssign):
        return Ranking("P = p · exp(-GIoU loss)", Criterion(_rounded(confidence(predictions, assigner.box_weight))))
    if isinstance(assigner, DW):
        t = confidence(predictions, assigner.beta, assigner.fit)
        return Ranking("t, consistency", Criterion(_rounded(t)))
    if isinstance(assigner, SimOTA):
        cost = assigner.cost(predictions)

        def cheapness(boxes: Tensor, labels: Tensor, at: At) -> Tensor:
            return take((1 / (1 + cost(labels, overlap.quality(boxes, labels, ALL)))).float(), at)

        return Ranking("1 / (1 + cost)", Criterion(cheapness))
    return None
