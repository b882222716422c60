"""`examples/quickstart.ipynb` runs as it is."""

import json
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"


def test_it_is_kept_without_outputs():
    cells = [c for c in json.loads(NOTEBOOK.read_text())["cells"] if c["cell_type"] == "code"]
    assert cells
    assert all(not c["outputs"] and c["execution_count"] is None for c in cells)


@pytest.mark.slow
def test_every_cell_runs(tmp_path, monkeypatch):
    import nbclient
    import nbformat

    monkeypatch.setenv("PYTHONPATH", str(ROOT) + os.pathsep + os.environ.get("PYTHONPATH", ""))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = "".join(o.get("text", "") for c in notebook.cells if c.cell_type == "code" for o in c.outputs)
    assert "val/AP" in shown
    assert f"{tmp_path}/runs/notebook/checkpoints/step-" in shown
    kinds = {o.output_type for c in notebook.cells if c.cell_type == "code" for o in c.outputs}
    assert "execute_result" in kinds, "the picture and the COCO results"
    results = notebook.cells[-1].outputs[0].data["text/plain"]
    assert "'bbox'" in results
