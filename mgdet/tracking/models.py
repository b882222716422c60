"""The best checkpoint of a run as a model of MLflow, and the registered model whose alias `best` is the best of all."""

import logging
import tempfile
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mgdet.tracking.origin import model_of
from mgdet.tracking.run import Best, ModelFiles

logger = logging.getLogger(__name__)

RANKED_BY = "val/AP"
"""The metric by which the alias `best` is given; each version has it as a tag."""
ALIAS = "best"
DATA = "mgdet.data"
"""The tag of a version with the digest of the data set on which its metric was measured."""
_FILES = "mgdet.files"
"""The tag of a logged model that has its files."""
_MODEL = "mgdet.model_id"
"""The tag of a version with the id of its logged model; not every store gives MLflow's own field for it back."""
_PACKAGES = ("mlflow", "numpy", "onnxruntime", "pillow")


def save(place: Path, files: ModelFiles) -> None:
    """Write the directory of a model of MLflow: the code `served.py`, the files, a signature and an example."""
    import mlflow.pyfunc

    logging.getLogger("mlflow.utils.environment").setLevel(logging.ERROR)  # about pip, which uv does not install
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about type hints, from which the signature comes
        mlflow.pyfunc.save_model(
            str(place),
            python_model=str(Path(__file__).with_name("served.py")),
            artifacts={"onnx": str(files.onnx), "runtime": str(files.runtime)},
            input_example=([files.example], {"score": 0.3}),
            pip_requirements=[f"{name}=={version(name)}" for name in _PACKAGES],
        )


def has_files(client: Any, run_id: str, best: Best, register: str | None) -> bool:
    """Whether the model of this checkpoint has its files and, where `register` is a name, is a version there."""
    model = model_of(client, client.get_run(run_id), best)
    if model is None or _FILES not in model.tags:
        return False
    return register is None or _version_of(client, register, model.model_id) is not None


def log_files(
    client: Any,
    run_id: str,
    best: Best,
    files: ModelFiles,
    register: str | None,
    save: Callable[[Path, ModelFiles], None] = save,
) -> None:
    """Give the logged model of the best checkpoint its files, and register it where `register` is a name.

    What an earlier call has done is not done again.
    """
    model = model_of(client, client.get_run(run_id), best)
    if model is None:
        raise LookupError(f"run {run_id} has no logged model of {best.checkpoint}")
    if _FILES not in model.tags:
        with tempfile.TemporaryDirectory() as directory:
            place = Path(directory) / "model"
            save(place, files)
            client.log_model_artifacts(model.model_id, str(place))
        client.delete_logged_model_tag(model.model_id, "mlflow.model.isExternal")
        client.set_logged_model_tags(model.model_id, {_FILES: "onnx"})
    if model.status != "READY":
        client.finalize_logged_model(model.model_id, "READY")
    if register is not None:
        _register(client, register, run_id, model, best)


def _register(client: Any, name: str, run_id: str, model: Any, best: Best) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    if _version_of(client, name, model.model_id) is None:
        tags = {"mgdet.checkpoint": best.checkpoint, _MODEL: model.model_id}
        if RANKED_BY in best.metrics:
            tags[RANKED_BY] = repr(best.metrics[RANKED_BY])
        if best.data:
            tags[DATA] = best.data.digest
        # Its address, since `models:/<id>` would be looked up in whichever store this process tracks to
        client.create_model_version(name, model.artifact_location, run_id, tags=tags, model_id=model.model_id)
    ranked = [v for v in _versions(client, name) if RANKED_BY in v.tags]
    if not ranked:
        logger.warning("the registered model %s has no version with %s: none is its %s", name, RANKED_BY, ALIAS)
        return
    first = max(ranked, key=lambda v: (float(v.tags[RANKED_BY]), -int(v.version)))
    client.set_registered_model_alias(name, ALIAS, first.version)
    if len({v.tags.get(DATA) for v in ranked}) > 1:
        logger.warning(
            "the versions of the registered model %s were measured on different data; its alias %s is version %s",
            *(name, ALIAS, first.version),
        )


def _version_of(client: Any, name: str, model_id: str) -> Any:
    return next((v for v in _versions(client, name) if v.tags.get(_MODEL) == model_id), None)


def _versions(client: Any, name: str) -> list[Any]:
    found: list[Any] = []
    token = None
    while True:
        page = client.search_model_versions(f"name = '{name}'", page_token=token)
        found += page
        if not (token := page.token):
            return found
