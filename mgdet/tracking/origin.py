"""What a run in MLflow came from and came to: the columns Dataset and Models of MLflow's table of runs."""

import json
import re
from collections.abc import Sequence
from typing import Any

from mgdet.tracking.client import mlflow_name
from mgdet.tracking.run import Best, DataSet

CHECKPOINT = "mgdet.checkpoint"
"""The tag of a logged model that says where its file is."""
_LONGEST_NAME = 500


def log_data(client: Any, run_id: str, data: Sequence[DataSet]) -> None:
    """Give a run its data sets as inputs; one that it has already is not added again."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs = []
    for split in data:
        scheme, separator, _ = split.uri.partition("://")
        found = Dataset(
            name=split.name[:_LONGEST_NAME],
            digest=split.digest,
            source_type=scheme if separator and scheme != "file" else "local",
            source=json.dumps({"uri": split.uri}),
            profile=json.dumps({"num_rows": split.counts.get("images"), **split.counts}),
        )
        inputs.append(DatasetInput(found, [InputTag("mlflow.data.context", split.use)]))
    if inputs:
        client.log_inputs(run_id, inputs)


def show_model(client: Any, run_id: str, best: Best) -> None:
    """Give a run its best checkpoint as a logged model whose file stays where it is, with its metrics linked to it.

    The metrics are points that the run has already: MLflow drops one that is equal in key, step, value and time, and
    only links it to the model. A model is READY once all of them are linked; until then a further call goes on with it.
    """
    from mlflow.entities import LoggedModelOutput, Metric

    run = client.get_run(run_id)
    model = model_of(client, run, best) or client.create_logged_model(
        run.info.experiment_id,
        name=re.sub(r"[/:.%\"']", "_", run.info.run_name),  # which MLflow refuses in names of models
        source_run_id=run_id,
        tags={CHECKPOINT: best.checkpoint, "mlflow.model.isExternal": "true"},
        params={"epoch": str(best.epoch), "step": str(best.step)},
        model_type="detector",
    )
    if model.status == "READY":
        return
    if model.model_id not in [output.model_id for output in run.outputs.model_outputs]:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, best.step)])
    of_data = {"dataset_name": best.data.name[:_LONGEST_NAME], "dataset_digest": best.data.digest} if best.data else {}
    keys = [mlflow_name(name) for name in best.metrics]
    history = [point for key in keys for point in client.get_metric_history(run_id, key) if point.step == best.step]
    linked = [Metric(p.key, p.value, p.timestamp, p.step, model_id=model.model_id, **of_data) for p in history]
    if linked:
        client.log_batch(run_id, metrics=linked, synchronous=True)
    if {point.key for point in linked} == set(keys):
        client.finalize_logged_model(model.model_id, "READY")


def model_of(client: Any, run: Any, best: Best) -> Any:
    """The logged model of this checkpoint, None if there is none yet."""
    found = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")
    return next((model for model in found if model.tags.get(CHECKPOINT) == best.checkpoint), None)
