"""No tracker."""

from typing import Literal

from mgdet.tracking.base import Tracking


class NoTracking(Tracking):
    """Metrics are kept in `metrics.jsonl` only."""

    name: Literal["none"] = "none"
