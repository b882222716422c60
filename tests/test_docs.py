"""What the documentation says to do is done here."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from mgdet.assign import AssignerConfig
from mgdet.config import load
from mgdet.errors import ConfigError
from mgdet.models import FCOSConfig, RetinaNetConfig

ROOT = Path(__file__).parents[1]
PAIR = re.compile(r"bccd_(retinanet|fcos)_(\w+)\.yaml")
TINY = (
    *("data.transform.resize.height=64", "data.transform.resize.width=64"),
    *("model.channels=32", "train.batch_size=2", "cluster.workers=0", "tracking.enabled=false"),
)


def section(page: str, title: str) -> str:
    text = (ROOT / "docs" / page).read_text()
    return re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)[1]


@pytest.mark.slow
def test_the_worked_example_of_an_assigner_runs(tmp_path):
    """One file and one line in the union of a copy of the package, then the command of the page."""
    new_file, change = re.findall(r"```python\n(.*?)```", section("architecture.md", "Add an assigner"), re.DOTALL)
    command = re.search(r"```bash\nuv run jobs/train.py (.*?)\n```", section("architecture.md", "Add an assigner"))[1]
    for name in ("mgdet", "jobs", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "mgdet/assign/best_k.py").write_text(new_file)
    init = tmp_path / "mgdet/assign/__init__.py"
    statement, union = change.strip().split("\n\n")
    assert union.startswith("AssignerConfig = Annotated[MaxIoU | ... | BestK,")
    text = init.read_text().replace("\nAssignerConfig", f"\n{statement}\n\nAssignerConfig")
    init.write_text(text.replace("    MaxIoU | ", "    BestK | MaxIoU | "))
    assert "BestK | MaxIoU" in init.read_text()

    def train(*arguments: str) -> subprocess.CompletedProcess[str]:
        data = ["data.uri=shapes", "data.generate.train=4", "data.generate.val=2", "data.generate.size=64"]
        return subprocess.run(
            [sys.executable, "jobs/train.py", *command.split(), *data, *TINY, *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
        )

    done = train("--dry-run")
    assert done.returncode == 0, done.stderr
    assert "dry run: everything works" in done.stdout
    assert re.search(r"^assigner:\n(  .*\n)*?  name: best_k\n(  .*\n)*?  k: 5\n", done.stdout, re.MULTILINE)
    refused = train("assigner.kk=5", "--dry-run")
    assert refused.returncode == 2
    assert "unknown key assigner.kk. Did you mean assigner.k?" in refused.stderr


def test_there_is_a_recipe_for_every_pair_that_is_defined_and_the_table_shows_which():
    variants = {m.model_fields["name"].default: m for m in AssignerConfig.__origin__.__args__}
    recipes = {m.groups() for p in (ROOT / "configs").glob("bccd_*.yaml") if (m := PAIR.fullmatch(p.name))}
    table = section("papers/index.md", "Which assigner on which detector")
    rows = re.findall(r"^\| `(\w+)` \|(.*?)\|(.*?)\|", table, re.M)
    shown = {
        (d, name) for name, *cells in rows for d, c in zip(("retinanet", "fcos"), cells, strict=True) if "yes" in c
    }
    defined = set()
    for name, variant in variants.items():
        for model in (RetinaNetConfig(), RetinaNetConfig(anchors={"scales": 1, "ratios": [1.0]}), FCOSConfig()):
            try:
                variant().resolved_for(model.layout)
            except ConfigError:
                continue
            defined.add((model.name, name))
    assert recipes == defined
    assert shown == defined
    assert {name for name, *_ in rows} == set(variants)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("bccd_*.yaml")), ids=lambda p: p.stem)
def test_a_recipe_is_what_its_name_says(path):
    detector, assigner = PAIR.fullmatch(path.name).groups()
    experiment = load(path)
    assert (experiment.name, experiment.model.name, experiment.assigner.name) == (path.stem, detector, assigner)


def test_pairs_that_are_not_defined_are_refused_with_the_reason():
    path = ROOT / "configs" / "bccd_fcos_center_sampling.yaml"
    with pytest.raises(ConfigError, match=r"points have no size; use assigner.name=center_sampling"):
        load(path, ["assigner.name=max_iou"])
    with pytest.raises(ConfigError, match="9 anchors per location, which it cannot tell"):
        load(ROOT / "configs" / "bccd_retinanet_max_iou.yaml", ["assigner.name=center_sampling"])
    with pytest.raises(ValidationError):
        TypeAdapter(AssignerConfig).validate_python({"name": "nobody"})


def test_every_figure_of_a_fault_comes_from_a_test():
    """Its row names the test, which is there and notes this fault."""
    rows = re.findall(
        r"^\| (.+?) \| \d+ \| [\d.]+ \| `(.+?)::(\w+)` \|$", section("operations.md", "What a fault costs"), re.M
    )
    assert len(rows) >= 20
    for fault, file, test in rows:
        source = (ROOT / file).read_text()
        body = re.search(rf"^def {test}\(.*?(?=^\S)", source + "\nx", re.MULTILINE | re.DOTALL)
        assert body, f"{file} has no {test}"
        notes = re.findall(r'note(?:_cost)?\(f?"(.+?)"', body[0])
        assert any(re.fullmatch(re.sub(r"\\\{.*?\\\}", ".*", re.escape(n)), fault) for n in notes), (fault, notes)


def test_configurations_of_published_rows_load(tmp_path):
    """Those that docs/papers/published.md spells out, with the overrides of its table."""
    text, files = (ROOT / "docs/papers/published.md").read_text(), {}
    for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL):
        name = re.search(r"^name: (\S+)", block, re.MULTILINE)[1]
        path = tmp_path / f"{name}.yaml"
        path.write_text(block)
        files[path.stem] = path
        load(path)
    rows = re.findall(r"\| (retinanet|fcos): `([^`]+)`", text)
    assert len(rows) >= 8
    for detector, overrides in rows:
        load(files[f"coco-{detector}-1x"], overrides.split())
