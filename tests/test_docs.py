"""What the documentation says to do is done here."""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from mgdet.assign import AssignerConfig
from mgdet.config import load
from mgdet.config_yaml import flatten
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


EXAMPLES = (
    "an assigner",
    "a backbone",
    "an optimizer",
    "a schedule",
    "a loss term",
    "a metric",
    "an augmentation",
    "a tracker",
)
FORMAT = "a data format"
OUTSIDE = "a component from outside the package"
PARTS = (".ci", ".github", "benchmarks", "configs", "deploy", "docs", "examples", "jobs", "mgdet", "tests")


LOAD_EACH = """
import json, sys
from mgdet.config import load
from mgdet.errors import ConfigError

for settings in json.loads(sys.argv[1]):
    try:
        load("quickstart", settings)
        print("accepted")
    except ConfigError as error:
        print(repr(error))
"""


BETWEEN = "=== the next command\n"
RUN_EACH = f"""
import json, sys
from mgdet.cli.main import main

for arguments in json.loads(sys.argv[1]):
    print({BETWEEN!r}, end="", flush=True)
    if main(arguments):
        sys.exit(1)
"""


class Example(NamedTuple):
    """A worked example of docs/architecture.md."""

    path: str  # of its new file
    code: str
    change: str  # to a file of mgdet: an import, an empty line, an entry; "" where there is none
    changed: str  # that file
    arguments: list[str]  # of `mgdet`
    misspelt: str  # a setting that is refused; "" where it has no key


def example(title: str) -> Example:
    text = section("architecture.md", f"Add {title}")
    code, *change = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    path = re.search(r"Save it as\s`(\S+\.py)`", text)[1]
    changed = re.search(r"Then import it in `(\S+)`", text)
    misspelt = re.search(r"misspelt `(\S+)` is\srefused", text)
    command = re.search(r"```bash\nmgdet (.*?)\n```", text)[1]
    return Example(
        path,
        code,
        "".join(change),
        changed[1] if changed else "",
        shlex.split(command),
        misspelt[1] if misspelt else "",
    )


def changed_text(source: str, change: str) -> str:
    """A module of mgdet after the change: `...` stands for the members that are there; a field comes last."""
    statement, entry = change.rstrip().split("\n\n")
    if entry.startswith(" "):
        fields = r"(\nclass (?:Loss|Augment)Config\b.*?)(?=\n\n    def )"
        source, count = re.subn(fields, rf"\1\n{entry}", source, count=1, flags=re.S)
        assert count == 1
    else:
        start, separator, end = re.fullmatch(r"(.*)(?:, | \| )\.\.\.(, | \| )(.*)", entry).groups()
        node = next(node for node in ast.parse(source).body if ast.unparse(node).startswith(start))
        members = ast.unparse(node).removeprefix(start).removesuffix(end.removeprefix(statement.split()[-1]))
        lines = source.splitlines(keepends=True)
        written = f"{start}{members}{separator}{end}\n"
        source = "".join([*lines[: node.lineno - 1], written, *lines[node.end_lineno :]])
    return source.replace("\nfrom mgdet", f"\n{statement}\nfrom mgdet", 1)


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A copy of mgdet in which all examples have been carried out, and they."""
    root = tmp_path_factory.mktemp("extended")
    for name in PARTS:
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for file in filter(Path.is_file, ROOT.iterdir()):
        shutil.copy(file, root)
    examples = [example(title) for title in (*EXAMPLES, OUTSIDE, FORMAT)]
    for e in examples:
        assert not (root / e.path).exists()
        (root / e.path).write_text(e.code)
        if e.changed:
            path = root / e.changed
            path.write_text(changed_text(path.read_text(), e.change))
    run_there(root, "-m", "mgdet.cli.keys")
    return root, examples


def run_there(
    root: Path, *arguments: str, status: int = 0, mgdet: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Python in a directory: a copy of `mgdet`, or with that of another one."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(mgdet or root)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == status, done.stdout[-5000:] + done.stderr[-5000:]
    return done


@pytest.mark.slow
def test_every_worked_example_runs(extended):
    """One file and one entry each, in a copy of the package; then the command of the page, and a misspelt key."""
    root, examples = extended
    assert [bool(e.changed) for e in examples] == [True] * len(EXAMPLES) + [False, True]
    table = section("architecture.md", "Extend it")
    assert all(f"`{e.changed}` |" in table for e in examples if e.changed)
    examples = examples[:-1]  # those of a training
    data = ("data.uri=shapes", "data.generate.train=4", "data.generate.val=2", "data.generate.size=64")
    commands = [[*e.arguments, *data, *TINY, "--dry-run"] for e in examples]
    texts = run_there(root, "-c", RUN_EACH, json.dumps(commands)).stdout.split(BETWEEN)
    for e, said in zip(examples, texts[1:], strict=True):
        assert "dry run: everything works" in said
        chosen = {k: yaml.safe_load(v) for k, _, v in (a.partition("=") for a in e.arguments[2:]) if k != "plugins"}
        shown = flatten(yaml.safe_load(re.search(r"^name: (.*\n)+?(?=[\w.]+ = )", said, re.M)[0]))
        assert chosen == {k: shown[k] for k in chosen}
    refused = run_there(root, "-m", "mgdet", *commands[0], example("an assigner").misspelt, status=2)
    assert "unknown key assigner.kk. Did you mean assigner.k?" in refused.stderr
    misspelt = [[*e.arguments[2:], e.misspelt] for e in examples if e.misspelt]
    answers = run_there(root, "-c", LOAD_EACH, json.dumps(misspelt)).stdout.splitlines()
    for (*_, setting), answer in zip(misspelt, answers, strict=True):
        assert setting.partition("=")[0] in answer


def prepare_csv(root: Path, *arguments: str, mgdet: Path) -> None:
    (root / "photos").mkdir()
    Image.new("RGB", (64, 48)).save(root / "photos/a.png")
    (root / "boxes.csv").write_text("a.png;4;5;20;30;cat\n")
    said = run_there(root, "-m", "mgdet", *arguments, mgdet=mgdet).stdout
    assert re.search(r"train +1 +1", said)
    assert "1 classes: cat" in said


@pytest.mark.slow
def test_the_worked_example_of_a_data_format_runs(extended):
    root, examples = extended
    prepare_csv(root, *examples[-1].arguments, mgdet=root)


@pytest.mark.slow
def test_every_worked_example_comes_from_outside_the_package_too(tmp_path):
    """The same files, unchanged, beside mgdet instead of in it; all at once, named as plugins."""
    examples = [example(title) for title in EXAMPLES]
    for e in (*examples, example(FORMAT)):
        (tmp_path / Path(e.path).name).write_text(e.code)
    settings = [a for e in examples for a in e.arguments[1:] if not a.startswith("name=")]
    data = ("data.uri=shapes", "data.generate.train=4", "data.generate.val=2", "data.generate.size=64")
    plugins = f"plugins=[{','.join(Path(e.path).stem for e in examples)}]"
    command = ("-m", "mgdet", "train", plugins, *data, *TINY, *settings, "--dry-run")
    said = run_there(tmp_path, *command, mgdet=ROOT).stdout
    assert "dry run: everything works" in said
    misspelt = [[plugins, *(a for a in e.arguments[1:] if "=" in a), e.misspelt] for e in examples if e.misspelt]
    answers = run_there(tmp_path, "-c", LOAD_EACH, json.dumps(misspelt), mgdet=ROOT).stdout.splitlines()
    for (*_, setting), answer in zip(misspelt, answers, strict=True):
        assert setting.partition("=")[0] in answer
    prepare_csv(tmp_path, *example(FORMAT).arguments, "--plugin", "csv_boxes", mgdet=ROOT)


@pytest.mark.exhaustive
def test_the_unit_tests_pass_with_all_worked_examples(extended):
    root, _ = extended
    done = run_there(root, "-m", "pytest", "tests", "-p", "no:cacheprovider")
    assert re.search(r"\d+ passed", done.stdout)


def test_there_is_a_recipe_for_every_pair_that_is_defined_and_the_table_shows_which():
    """For each assigner that docs/papers names; one that is added need not come from a paper."""
    papers = "".join(path.read_text() for path in (ROOT / "docs/papers").glob("*.md"))
    variants = {m.model_fields["name"].default: m for m in AssignerConfig.__origin__.__args__}
    named = {name for name in variants if f"`{name}`" in papers}
    recipes = {m.groups() for p in (ROOT / "configs").glob("bccd_*.yaml") if (m := PAIR.fullmatch(p.name))}
    table = section("papers/index.md", "Which assigner on which detector")
    rows = re.findall(r"^\| `(\w+)` \|(.*?)\|(.*?)\|", table, re.M)
    shown = {
        (d, name) for name, *cells in rows for d, c in zip(("retinanet", "fcos"), cells, strict=True) if "yes" in c
    }
    defined = set()
    for name in named:
        for model in (RetinaNetConfig(), RetinaNetConfig(anchors={"scales": 1, "ratios": [1.0]}), FCOSConfig()):
            try:
                variants[name]().resolved_for(model.layout)
            except ConfigError:
                continue
            defined.add((model.name, name))
    assert recipes == defined
    assert shown == defined
    assert {name for name, *_ in rows} == named


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


def test_every_test_that_a_page_names_is_there():
    """As `tests/x.py::test_y`, or `::test_z` for one more of the file that was named last."""
    named = 0
    for page in (ROOT / "docs").rglob("*.md"):
        file = None
        for path, test in re.findall(r"`(tests/[\w/]+\.py)?(?:::(\w+))?`", page.read_text()):
            file = path or file
            if file and (path or test):
                assert (ROOT / file).exists(), f"{page.name} names {file}"
                assert not test or f"def {test}(" in (ROOT / file).read_text(), f"{page.name} names {file}::{test}"
                named += bool(test)
    assert named > 60


def test_configurations_of_published_rows_load():
    """Those that docs/papers/published.md names, with the overrides of its table."""
    text = (ROOT / "docs/papers/published.md").read_text()
    named = re.findall(r"^\| `(coco_\w+)` \|", text, re.MULTILINE)
    assert len(named) >= 8
    for name in named:
        load(name)
    rows = re.findall(r"\| `(coco_\w+)`: `([^`]+)`", text)
    assert len(rows) >= 6
    for name, overrides in rows:
        load(name, overrides.split())
