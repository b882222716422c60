"""MLflow's own UI, which opens on the runs: the app `mgdet` of `mlflow ui --app-name` (see `mgdet.tracking.view`).

Only MLflow's server imports this file. The page that starts the UI gets a script that runs before MLflow's own and
gives the browser the mode for model training and the experiment's view, in the form and under the names that MLflow
3.17 uses in the browser's storage; a version of MLflow that uses other names ignores them. The mode is given once, and
a view once each time a sweep has changed it: what the user chooses in the browser afterwards stays.
"""

from flask import Response, request
from mlflow.server import app as pages
from mlflow.server.fastapi_app import app

from mgdet.tracking.view import MODE, VIEW_TAG

__all__ = ["app"]

_SCRIPT = """<script>
try {
  const give = (key, value, merged) => {
    if (localStorage.getItem(`mgdet.${key}`) === value) return;
    localStorage.setItem(key, merged ? JSON.stringify({...JSON.parse(localStorage.getItem(key)), ...merged}) : value);
    localStorage.setItem(`mgdet.${key}`, value);
  };
  give("mlflow.workflowType_v1", JSON.stringify("MODE"));
  const ask = new XMLHttpRequest();
  ask.open("POST", "ajax-api/2.0/mlflow/experiments/search", false);
  ask.setRequestHeader("Content-Type", "application/json");
  ask.send(JSON.stringify({max_results: 1000, filter: "tags.`VIEW_TAG` LIKE '%'"}));
  for (const found of JSON.parse(ask.responseText).experiments ?? []) {
    const view = found.tags.find(tag => tag.key === "VIEW_TAG").value;
    const page = `ExperimentPage-${JSON.stringify([found.experiment_id])}`;
    give(`MLflowLocalStorage-1.1-${page}-ReactComponentState`, view, JSON.parse(view));
  }
} catch (error) { console.warn("mgdet: MLflow's UI opens as usual", error); }
</script>"""
"""Asks for the experiments before MLflow's page starts, because that page reads the storage at once."""


def _add_script(response: Response) -> Response:
    if request.endpoint == "serve" and response.mimetype == "text/html" and response.status_code == 200:
        response.direct_passthrough = False  # it is a file that would be sent as it is
        script = _SCRIPT.replace("MODE", MODE).replace("VIEW_TAG", VIEW_TAG)
        response.set_data(response.get_data(as_text=True).replace("<head>", f"<head>{script}", 1))
        response.headers.pop("ETag", None)  # it is that of the file
        response.cache_control.no_store = True
    return response


pages.after_request(_add_script)
