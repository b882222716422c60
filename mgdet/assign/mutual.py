"""What Mutual Guidance and mutual labeling share: each task's samples are ranked by how well the other task does."""

from abc import abstractmethod
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Field

from mgdet.assign.base import owned_labels, ranked_labels
from mgdet.assign.criteria import adaptive
from mgdet.assign.max_iou import IoUThresholds
from mgdet.assign.ownership import Counts
from mgdet.assign.pieces import Criterion
from mgdet.config_base import resolved
from mgdet.structures import Assignment, Labels, Predictions, PriorLayout, Priors, Targets

Direction = Literal["both", "loc_to_cls", "cls_to_loc", "none"]


class Criteria(NamedTuple):
    """By what the priors of an object are ranked for each task."""

    cls: Criterion  # how well they localize
    loc: Criterion  # how well they classify
    overlap: Criterion | None = None  # the IoU of the anchors, where both are made of it too


class MutualAssigner(IoUThresholds):
    """The skeleton: two criteria, the number of samples of each object, and the labels of a task that is not guided.

    A task's labels are the priors that rank first by its criterion, as many as `counts` says. Without counts they are
    chosen by `count`: `mean_std`, ATSS's threshold on the criterion itself, or `dynamic_k`, the sum of the `top_k` best
    values. Classification may also ignore the next priors (`Counts.not_negative`).
    """

    count: str
    direction: Direction = Field(
        default="both", description="which task is guided by the other; `none`: the same count without predictions"
    )
    top_k: Annotated[int, Field(gt=0, le=10_000)] | Literal["auto"] = Field(
        default="auto", description="qualities summed by count=dynamic_k; auto: 15, or 5 with one prior per location"
    )
    candidates: int = Field(
        default=9, ge=1, le=10_000, description="locations on each level that count=mean_std looks at"
    )

    @abstractmethod
    def criteria(self, predictions: Predictions) -> Criteria:
        """The two rankings."""

    @abstractmethod
    def counts(self, priors: Priors, targets: Targets, overlap: Criterion | None) -> Counts | None:
        """How many samples each object gets by a rule that needs no predictions; None: `count` decides by quality.

        `overlap` is that of the criteria.
        """

    @abstractmethod
    def unguided(self, predictions: Predictions, targets: Targets, counts: Counts | None) -> Assignment:
        """The labels of tasks that the other one does not guide."""

    def enough(self, priors: Priors) -> float:
        """The quality below which an object's best prior is replaced by one of its own (see `find_owners`)."""
        return self.positive_iou

    def resolved_for(self, layout: PriorLayout) -> Self:
        """`top_k` as a number: the authors' 15 with several priors per location, 5 with one."""
        top_k = (15 if layout.per_location > 1 else 5) if self.top_k == "auto" else self.top_k
        return self.model_copy(update={"top_k": top_k})

    def assign(self, predictions: Predictions, targets: Targets) -> Assignment:
        """Labels of the two tasks, independent of each other: a prior may be positive for one of them only."""
        priors, criteria = predictions.priors, self.criteria(predictions)
        counts = self.counts(priors, targets, criteria.overlap)
        if self.direction == "none":
            return self.unguided(predictions, targets, counts)
        if self.direction == "cls_to_loc":
            cls = self.unguided(predictions, targets, counts).cls
        else:
            cls = self.labels(criteria.cls, priors, targets, counts, ignore=True)
        if self.direction == "loc_to_cls":
            loc = self.unguided(predictions, targets, counts).loc
        else:
            loc = self.labels(criteria.loc, priors, targets, counts)
        return Assignment(cls, loc)

    def labels(
        self, criterion: Criterion, priors: Priors, targets: Targets, counts: Counts | None, ignore: bool = False
    ) -> Labels:
        """The labels of one task by its criterion; with `ignore` the priors between the two counts are ignored."""
        if self.count == "mean_std":
            return owned_labels(self.find_owners(adaptive(criterion, priors, self.candidates), priors, targets))
        owners = self.find_owners(criterion, priors, targets, force="best", enough=self.enough(priors))
        if counts is None:
            counts = owners.dynamic_counts(resolved(self.top_k), targets.boxes.shape[1])
        return ranked_labels(owners, counts, ignore)
