"""The experiment: one tree of the components' own configurations, from YAML and `key=value` overrides.

experiment = load("configs/quickstart.yaml", ["train.epochs=24", "assigner.sigma=3"])
"""

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import Field, model_validator

from mgdet.assign import AssignerConfig, MutualGuidance
from mgdet.assign.auto_assign import AutoAssignWeights
from mgdet.assign.dw import DualWeights
from mgdet.config_base import ByField, Config
from mgdet.config_files import EXPERIMENTS, PAPERS, find
from mgdet.config_yaml import Overrides, flatten, on_base, read_tree, set_value, settings_of, validate_as
from mgdet.data.config import DataConfig
from mgdet.evaluation.evaluator import EvaluationConfig
from mgdet.models import LossConfig, LossTerm, ModelConfig, RetinaNetConfig
from mgdet.models.losses.box import CodedTerm
from mgdet.plugins import load_plugins, named_plugins, require_plugins, united, unnamed_plugin
from mgdet.runs.config import ClusterConfig
from mgdet.storage import Place, child_uri
from mgdet.text import redacted
from mgdet.tracking import Mlflow, TrackingConfig
from mgdet.training.config import TrainConfig


class Experiment(Config):
    """Everything that a training needs; the same `storage` and `name` mean the same run, which is then resumed."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200, description="of the run: letters, digits, . _ -"
    )
    storage: Place = Field(default="runs", description="where runs are kept: a local path or a pyarrow.fs URI")
    seed: int = Field(default=0, ge=0, lt=2**63, description="of weights, order and augmentation")
    plugins: tuple[str, ...] = Field(
        default=(),
        description="modules, or entry points of the group mgdet.plugins, that bring components of their own, such as "
        "an assigner; those of a base and of the command line are added to them",
    )
    data: DataConfig
    model: ModelConfig = RetinaNetConfig()
    assigner: AssignerConfig = MutualGuidance()
    loss: Annotated[LossConfig, ByField(LossTerm)] = LossConfig()
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    cluster: ClusterConfig = ClusterConfig()
    tracking: TrackingConfig = Mlflow()

    @model_validator(mode="after")
    def _assigner_suits_the_detector(self) -> Self:
        self.assigner.resolved_for(self.model.layout)
        return self

    @model_validator(mode="after")
    def _box_losses_suit_the_detector(self) -> Self:
        """Distributions of distances have no offsets to compare, and without them there is nothing to teach."""
        bins = getattr(self.model, "bins", 0)
        if bins and isinstance(self.loss.box, CodedTerm):
            raise ValueError(
                f"model.bins = {bins} makes the distances distributions, and loss.box.name = {self.loss.box.name} "
                "compares offsets: use loss.box.name=giou, or model.bins=0"
            )
        if not bins and self.loss.distribution is not None:
            raise ValueError(
                "loss.distribution teaches distributions of distances, and this detector predicts none: use "
                "model.name=fcos with model.bins=16, or loss.distribution=null"
            )
        if bins and self.loss.bag is not None and self.loss.bag.name == "free_anchor":
            raise ValueError(
                "loss.bag.name=free_anchor compares offsets, and model.bins makes them distributions: use model.bins=0"
            )
        return self

    @model_validator(mode="after")
    def _whole_objects_suit_the_rest(self) -> Self:
        """What only a loss of whole objects teaches has one, and such a loss weighs as the assigner does."""
        bag = self.loss.bag
        kind = bag.name if bag else "none"
        if self.model.quality == "objectness" and kind not in ("auto_assign", "dw"):
            raise ValueError(
                "model.quality=objectness has no target of its own: use loss.bag.name=auto_assign or dw, or another "
                "model.quality"
            )
        if self.model.centre_prior and kind != "auto_assign":
            raise ValueError("model.centre_prior is taught by loss.bag.name=auto_assign alone: use both or neither")
        for base in (AutoAssignWeights, DualWeights):
            if isinstance(bag, base) and isinstance(self.assigner, base):
                for key in base.model_fields:
                    one, other = getattr(self.assigner, key), getattr(bag, key)
                    if one != other:
                        raise ValueError(
                            f"assigner.{key} = {one} and loss.bag.{key} = {other}: the labels are weighed as the loss "
                            f"weighs; set both to one value"
                        )
        return self

    @property
    def beside(self) -> int:
        """How many processes of the size of a worker run beside the workers: one that evaluates aside, or none."""
        return int(self.evaluation.where == "aside")

    @model_validator(mode="after")
    def _plugins_are_named(self) -> Self:
        """What it is made of is known wherever it is read, by a worker or from a checkpoint."""
        for key, node in _nodes(self):
            if plugin := unnamed_plugin(type(node), self.plugins):
                raise ValueError(f"{key} comes from the plugin {plugin}: add it to plugins")
        return self

    @property
    def run_uri(self) -> str:
        """Path or URI of the run's directory, in which it keeps all its files."""
        return child_uri(self.storage, self.name)

    def to_yaml(self) -> str:
        """The whole tree as YAML that `load` reads back to an equal experiment (but for a password, see `shown`)."""
        return yaml.safe_dump(self.shown(), sort_keys=False)

    def shown(self) -> dict[str, Any]:
        """The whole tree as plain values, fit for logs and checkpoints: no user or password in any URI."""
        tree: dict[str, Any] = _redacted(self.model_dump(mode="json"))
        return tree

    def identity(self) -> dict[str, Any]:
        """The values that decide the weights, by dotted key: where two experiments agree in them they are one run."""
        return identity_of(self.shown())


def identity_of(tree: Mapping[str, Any]) -> dict[str, Any]:
    """`Experiment.identity` of a plain tree, such as one that was written down earlier, which need not be valid now."""
    besides = ("cluster", "tracking", "storage", "evaluation", "plugins")
    how_often = ("evaluate_every", "checkpoint_every_steps", "checkpoint_every_s", "keep_best", "log_every", "profile")
    rest = {k: v for k, v in tree.items() if k not in besides}
    rest["data"] = {k: v for k, v in tree["data"].items() if k not in ("loader", "max_bad_images")}
    rest["train"] = {k: v for k, v in tree["train"].items() if k not in how_often}
    return flatten(rest)


def load(config: str | Path | Mapping[str, Any], overrides: Overrides = ()) -> Experiment:
    """An experiment from its file, with some keys set otherwise.

    Args:
        config: a YAML file, the name of a configuration that comes with mgdet, or a mapping of what a file would hold.
            It may start from another one, `base: other.yaml` beside it, and then holds only what differs.
        overrides: `dotted.key=value` with YAML values, or a mapping of dotted keys to values.

    Raises:
        ConfigError: no such file, not YAML, an unknown key, or a value that is not allowed.
    """
    if isinstance(config, Mapping):
        source = "the configuration"
        tree = copy.deepcopy(on_base(Experiment, config, source, Path()))
    else:
        source = str(config)
        tree = read_tree(Experiment, find(config, EXPERIMENTS, PAPERS))
    settings = list(settings_of(overrides))
    for key, value, said in settings:
        if key == "plugins":  # first: the others are read with what they bring
            added = named_plugins({key: value}, said)
            load_plugins(added, (Path(),))
            tree[key] = united(tree.get(key, ()), added)
    for key, value, said in settings:
        if key != "plugins":
            set_value(Experiment, tree, key, value, said)
    return validate(tree, source)


def validate(tree: dict[str, Any], source: str) -> Experiment:
    """An experiment from a plain tree; `source` stands in error messages. Imports no plugin.

    Raises:
        ConfigError: a key or value that is not allowed, or a plugin that the tree needs and nobody has loaded.
    """
    require_plugins(named_plugins(tree, source), source)
    return validate_as(Experiment, tree, source)


def _nodes(node: Config, prefix: str = "") -> Iterator[tuple[str, Config]]:
    """The nodes below one, by their dotted keys."""
    for key, value in node:
        if isinstance(value, Config):
            yield f"{prefix}{key}", value
            yield from _nodes(value, f"{prefix}{key}.")


def _redacted(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _redacted(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_redacted(v) for v in value]
    return redacted(value) if isinstance(value, str) else value
