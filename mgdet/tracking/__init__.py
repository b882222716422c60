"""Where metrics, parameters and pictures of a run are kept: a local journal always, MLflow when it can be reached.

This package is the only place that imports mlflow, and does so inside functions (it costs 2 to 5 s), so importing
it is cheap. The driver makes or reopens a run (`start_run`) and hands the `RunHandle` to the one worker that writes
(`MlflowTracker`); every other rank has a `NullTracker`. A failure of tracking never stops a training.
"""

from mgdet.tracking.run import RunHandle, Status, end_run, start_run
from mgdet.tracking.store import TrackingConfig
from mgdet.tracking.sweep import Child, children, close_child, tag
from mgdet.tracking.tracker import CloseReport, MlflowTracker, NullTracker, Tracker

__all__ = [
    "Child",
    "CloseReport",
    "MlflowTracker",
    "NullTracker",
    "RunHandle",
    "Status",
    "Tracker",
    "TrackingConfig",
    "children",
    "close_child",
    "end_run",
    "start_run",
    "tag",
]
