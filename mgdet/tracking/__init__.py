"""Trackers: where metrics, parameters and pictures of runs are shown. Adding one takes its file and its place below.

The driver makes or reopens a run (`Tracking.start`) and hands the `RunHandle` to the one worker that writes; every
other rank has a `NullTracker`. What is logged goes to a local journal first, and from there to the tracker's store,
whatever it is (`tracker.py`). A failure of tracking never stops a training.

This package is the only place that imports mlflow, and does so inside functions (it costs 2 to 5 s), so importing it
is cheap.
"""

from typing import Annotated

from mgdet.config_base import ByName
from mgdet.tracking.base import StoreTracking, Tracking
from mgdet.tracking.mlflow import Mlflow
from mgdet.tracking.none import NoTracking
from mgdet.tracking.run import Best, Child, Connection, DataSet, ModelFiles, NewRun, Point, RunHandle, Status
from mgdet.tracking.tracker import CloseReport, JournalTracker, NullTracker, Tracker

TrackingConfig = Annotated[Mlflow | NoTracking, ByName()]

__all__ = [
    "Best",
    "Child",
    "CloseReport",
    "Connection",
    "DataSet",
    "JournalTracker",
    "Mlflow",
    "ModelFiles",
    "NewRun",
    "NoTracking",
    "NullTracker",
    "Point",
    "RunHandle",
    "Status",
    "StoreTracking",
    "Tracker",
    "Tracking",
    "TrackingConfig",
]
