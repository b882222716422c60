"""The experiment: one tree of the components' own configurations, from YAML and `key=value` overrides.

    experiment = load("configs/quickstart.yaml", ["train.epochs=24", "assigner.sigma=3"])

Every error names the key's path, the value, what is allowed and, for a misspelt key, the nearest valid one.
"""

import copy
import difflib
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, Field, ValidationError, model_validator

from mgdet.assign import AssignerConfig, MutualGuidance
from mgdet.cluster.config import ClusterConfig
from mgdet.config_base import Config
from mgdet.data.loader import LoaderConfig
from mgdet.data.shapes import ShapesConfig
from mgdet.data.transforms import TransformConfig
from mgdet.errors import ConfigError
from mgdet.evaluation.evaluator import EvaluationConfig
from mgdet.models import LossConfig, ModelConfig, RetinaNetConfig
from mgdet.redact import redacted
from mgdet.storage import require_no_password
from mgdet.tracking import TrackingConfig
from mgdet.training.config import TrainConfig

M = TypeVar("M", bound=BaseModel)

Place = Annotated[str, AfterValidator(require_no_password)]
"""A local path or a URI of `pyarrow.fs`. It stands in files and logs, so it holds no password."""


class DataConfig(Config):
    """Which images, and how they become batches."""

    uri: Place = Field(description="prepared data set (see jobs/prepare.py): a local path or a pyarrow.fs URI")
    train_split: str = "train"
    val_split: str = "val"
    generate: ShapesConfig | None = Field(
        default=None, description="make this synthetic data set at `uri` if nothing is there yet"
    )
    transform: TransformConfig = TransformConfig()
    loader: LoaderConfig = LoaderConfig()


class Experiment(Config):
    """Everything that a training needs; the same `storage` and `name` mean the same run, which is then resumed."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="of the run: letters, digits, . _ -")
    storage: Place = Field(default="runs", description="where runs are kept: a local path or a pyarrow.fs URI")
    seed: int = Field(default=0, ge=0)
    data: DataConfig
    model: ModelConfig = RetinaNetConfig()
    assigner: AssignerConfig = MutualGuidance()
    loss: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    cluster: ClusterConfig = ClusterConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _assigner_suits_the_detector(self) -> Self:
        self.assigner.settled(self.model.layout)
        return self

    @property
    def run_uri(self) -> str:
        """Where this run keeps what it writes."""
        return f"{self.storage.rstrip('/')}/{self.name}"

    def to_yaml(self) -> str:
        """The whole tree as YAML that `load` reads back to an equal experiment (but for a password, see `shown`)."""
        return yaml.safe_dump(self.shown(), sort_keys=False)

    def shown(self) -> dict[str, Any]:
        """The whole tree as plain values, fit for logs and checkpoints: no user or password in any URI."""
        tree: dict[str, Any] = _redacted(self.model_dump(mode="json"))
        return tree

    def what_is_learned(self) -> dict[str, Any]:
        """The part that decides the weights, flat: two runs that agree in it may continue each other."""
        tree = {k: v for k, v in self.shown().items() if k not in ("cluster", "tracking", "storage", "evaluation")}
        tree["data"].pop("loader")
        for key in ("evaluate_every", "checkpoint_every_steps", "keep_best", "log_every"):
            tree["train"].pop(key)
        return flatten(tree)


def load(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment; `overrides` are `dotted.key=value` with YAML values.

    A file may name another one to start from, `base: other.yaml` beside it; it then holds only what differs.

    Raises:
        ConfigError: no such file, not YAML, an unknown key, or a value that is not allowed.
    """
    tree = read_tree(path)
    for override in overrides:
        key, value = parse_override(override)
        _set(tree, key, value, repr(override))
    return validate(tree, str(path))


def parse_override(override: str) -> tuple[str, Any]:
    """Key and value of `dotted.key=value`, the value read as YAML. Raises `ConfigError`."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{override!r}: an override is written key=value, such as train.epochs=24")
    try:
        return key, yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{override!r}: the value is not valid YAML: {_problem(error)}") from None


def with_settings(tree: dict[str, Any], settings: Mapping[str, Any], source: str) -> dict[str, Any]:
    """A copy of the tree with values at dotted keys; where one of them chooses a variant, that one comes first."""
    out = copy.deepcopy(tree)
    for key in sorted(settings, key=lambda k: not k.endswith(".name")):
        _set(out, key, settings[key], f"{source}: {key}")
    return out


def validate(tree: dict[str, Any], source: str) -> Experiment:
    """An experiment from a plain tree; `source` stands in error messages."""
    return validate_as(Experiment, tree, source)


def validate_as(root: type[M], tree: dict[str, Any], source: str) -> M:
    """The same for any model of configuration."""
    try:
        return root.model_validate(_with_default_names(tree, root))
    except ValidationError as error:
        lines = [_explain(e, root) for e in error.errors()]
        raise ConfigError(f"{source}: " + "\n".join(lines)) from None


def read_tree(path: str | Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A YAML file on top of its `base`, if it names one. Raises `ConfigError`."""
    tree = read_yaml(path)
    base = tree.pop("base", None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base = {base!r}: expected the name of a YAML file, relative to this one")
    here = Path(path).resolve()
    if here in above:
        raise ConfigError(f"{path}: its base leads back to itself ({' -> '.join(p.name for p in (*above, here))})")
    return with_settings(read_tree(Path(path).parent / base, (*above, here)), flatten(tree), str(path))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file whose top level is a mapping. Raises `ConfigError` for anything else, and for repeated keys."""
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        known = sorted(str(p) for p in Path("configs").glob("*.yaml"))
        hint = f" Known configurations: {', '.join(known)}." if known else ""
        raise ConfigError(f"{path}: cannot be read ({error}).{hint}") from error
    try:
        tree = yaml.load(text, _UniqueKeys)  # a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {_problem(error)}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a mapping of keys to values at the top, found {type(tree).__name__}")
    return tree


def _problem(error: yaml.YAMLError) -> str:
    """What is wrong and where, without the excerpt that YAML adds: it may begin in the middle of a password."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
    parts = [getattr(error, "context", None), getattr(error, "problem", None) or getattr(error, "reason", None)]
    return ", ".join(p for p in parts if p) + where


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one dict with dotted keys; lists and empty dicts stay values."""
    out: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            out |= flatten(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value
    return out


def _redacted(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _redacted(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_redacted(v) for v in value]
    return redacted(value) if isinstance(value, str) else value


class _UniqueKeys(yaml.SafeLoader):
    """YAML says the last of two equal keys wins; here the second one is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=deep)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key!r} stands twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _set(tree: dict[str, Any], key: str, value: Any, source: str) -> None:
    """Put a value at a dotted key; `source` stands in the error message."""
    *parents, leaf = key.split(".")
    node = tree
    for depth, parent in enumerate(parents):
        if node.get(parent) is None:
            node[parent] = {}
        node = node[parent]
        if not isinstance(node, dict):
            raise ConfigError(f"{source}: {'.'.join(parents[: depth + 1])} is a value, it has no keys below it")
    if leaf == "name" and "name" in node and node["name"] != value:
        _keep_common_keys(node, parents, value)
    node[leaf] = value


def _keep_common_keys(node: dict[str, Any], parents: list[str], name: Any) -> None:
    """Another variant of a union is chosen: what the file set for the old one stays where the new one may have it."""
    for variant in _walk(parents)[1]:
        if _tag(variant) == name:
            for key in [k for k in node if k != "name" and not _takes(variant, k, node[k])]:
                del node[key]


def _takes(variant: type[BaseModel], key: str, value: Any) -> bool:
    """Whether the variant has this key and allows this value, such as `auto`, of it."""
    if key not in variant.model_fields:
        return False
    try:
        variant.model_validate({key: value})
    except ValidationError as error:
        return all(e["loc"][:1] != (key,) for e in error.errors())
    return True


def _with_default_names(tree: dict[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """`assigner: {sigma: 3}` without a name means the default assigner, here and at every other union."""
    out = dict(tree)
    for key, field in model.model_fields.items():
        value = out.get(key)
        if not isinstance(value, dict):
            continue
        default, variants = field.default, _variants(field.annotation)
        if "name" not in value and isinstance(default, BaseModel) and (tag := _tag(type(default))) is not None:
            value = {"name": tag, **value}
        chosen = [m for m in variants if _tag(m) == value.get("name")] or variants[:1]
        out[key] = _with_default_names(value, chosen[0]) if chosen else value
    return out


def _walk(location: Sequence[Any], root: type[BaseModel] = Experiment) -> tuple[list[str], list[type[BaseModel]]]:
    """Where a pydantic error location leads: the path as users write it, and the models that stand there.

    Pydantic puts the tag of the chosen member of a union into the location; users do not write it.
    """
    path: list[str] = []
    known = False
    models: list[type[BaseModel]] = [root]
    for part in location:
        fields = {k: f.annotation for m in models for k, f in m.model_fields.items()}
        if path and known and not models:  # below a plain value pydantic goes on with the alternatives of its type
            break
        known = part in fields
        if part not in fields and any(_tag(m) == part for m in models):
            models = [m for m in models if _tag(m) == part]
            continue
        path.append(str(part))
        models = _variants(fields.get(part))
    return path, models


def _tag(model: type[BaseModel]) -> Any:
    return model.model_fields["name"].default if "name" in model.model_fields else None


def _variants(annotation: Any) -> list[type[BaseModel]]:
    """The pydantic models that an annotation allows."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for a in typing.get_args(annotation) for m in _variants(a)]


def _explain(error: Any, root: type[BaseModel]) -> str:
    path, models = _walk(error["loc"], root)
    if not path:  # keys that do not go together: the message names them
        return f"{error['msg'].removeprefix('Value error, ')}."
    key = ".".join(path)
    if error["type"] == "extra_forbidden":
        *parents, misspelt = path
        allowed = sorted({k for m in _walk(error["loc"][:-1], root)[1] for k in m.model_fields})
        near = difflib.get_close_matches(misspelt, allowed, n=1)
        hint = f" Did you mean {'.'.join([*parents, near[0]])}?" if near else ""
        return f"unknown key {key}.{hint} Allowed here: {', '.join(allowed)}."
    if error["type"] == "missing":
        return f"{key} is missing: it has no default, set it in the file or as {key}=..."
    if error["type"] in ("union_tag_invalid", "union_tag_not_found"):
        given = error["input"].get("name") if isinstance(error["input"], dict) else error["input"]
        return f"{key}.name = {given!r}: allowed are {', '.join(str(_tag(m)) for m in models)}."
    return f"{key} = {_short(error['input'])}: {error['msg'].removeprefix('Value error, ')}."


def _short(value: Any) -> str:
    text = redacted(repr(value))  # before it is cut
    return text if len(text) <= 80 else text[:77] + "..."
