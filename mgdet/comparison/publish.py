"""The files of a comparison, and the run of a tracker that has them as artifacts."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

from mgdet.comparison.compare import Comparison
from mgdet.comparison.report import as_json, as_text, page
from mgdet.provenance import as_tags, made_by
from mgdet.tracking import Mlflow, NewRun, Tracking


def files_of(comparison: Comparison, typed: str = "") -> dict[str, bytes]:
    """The page, the values and the text by the name of their file; `typed` is the command that made them."""
    return {
        "compare.txt": (as_text(comparison) + "\n").encode(),
        "compare.json": (json.dumps(as_json(comparison), indent=1) + "\n").encode(),
        "compare.html": page(comparison, typed).encode(),
    }


def track(
    comparison: Comparison, files: Mapping[str, bytes], tracking: Tracking | None = None
) -> tuple[tuple[str, str], ...]:
    """Log the files, and the differences as metrics, to a run of their own; how a person sees it, empty if it failed.

    A store that is away costs a warning.
    """
    tracking = tracking or Mlflow()
    name = "compare " + ", ".join(comparison.groups)
    handle = tracking.start(NewRun(name=name[:250], tags={"mgdet.compare": name[:500], **as_tags(made_by())}))
    if handle is None:
        return ()
    with tempfile.TemporaryDirectory() as directory:
        tracker = tracking(handle, Path(directory))
        for pair in comparison.pairs:
            known = {n: d.value for n, d in pair.differences.items() if d.value == d.value}
            tracker.log({f"difference/{pair.other}/{n}": value for n, value in known.items()}, step=0)
        for file, data in files.items():
            tracker.artifact(data, file)
        tracker.close()
    tracking.note(handle, "compare.html", f"Comparison of {', '.join(comparison.groups)}.")
    tracking.end(handle, "FINISHED")
    return handle.see
