"""The wheel alone: built, installed beside the packages of this environment, and used from an empty directory."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from mgdet import __version__

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
SMALL = (
    *("cluster.workers=0", "tracking.enabled=false", "train.epochs=1", "train.batch_size=2", "model.channels=32"),
    *("data.generate={train: 4, val: 2, size: 64}", "data.transform.resize={name: fixed, height: 64, width: 64}"),
)
SCRIPT = """import mgdet
detector = mgdet.load("runs/quickstart")
print(mgdet.__file__, detector.predict("photo.png", score=0).size)
"""


class Place:
    """An empty directory, and an environment of which only the wheel's mgdet can be imported."""

    def __init__(self, directory: Path, wheel: Path) -> None:
        self.wheel, self.directory, self.environment = wheel, directory / "empty", directory / "environment"
        self.directory.mkdir()
        venv.create(self.environment, with_pip=False)
        python = str(self.environment / "bin" / "python")
        uv("pip", "install", "--quiet", "--no-deps", "--no-index", "--python", python, str(wheel))
        self.packages = Path(sysconfig.get_path("purelib", vars={"base": str(self.environment)}))
        others = [p for p in sys.path if Path(p).name in ("site-packages", "dist-packages")]
        # Behind the wheel. The .pth files in them are not read, so that an editable mgdet there is not found
        (self.packages / "packages-of-the-tests.pth").write_text("\n".join(others) + "\n")

    def run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        command = [str(self.environment / "bin" / program), *arguments]
        return subprocess.run(command, cwd=self.directory, env=env, capture_output=True, text=True)

    def mgdet(self, *arguments: str) -> str:
        done = self.run("mgdet", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    directory = tmp_path_factory.mktemp("wheel")
    uv("build", "--wheel", "--out-dir", str(directory), str(ROOT))
    return Place(directory, next(directory.glob("*.whl")))


def uv(*arguments: str) -> None:
    program = [found] if (found := shutil.which("uv")) else [sys.executable, "-m", "uv"]
    done = subprocess.run([*program, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_wheel_holds_what_it_needs(place):
    assert place.wheel.name == f"mgdet-{__version__}-py3-none-any.whl"
    held = set(zipfile.ZipFile(place.wheel).namelist())
    configs = {f"mgdet/configs/{p.relative_to(ROOT / 'configs')}" for p in (ROOT / "configs").rglob("*.yaml")}
    assert configs | {"mgdet/py.typed", "mgdet/cli/keys.json", "mgdet/__main__.py"} <= held
    assert not [name for name in held if name.startswith(("tests/", "jobs/"))]
    entry = zipfile.ZipFile(place.wheel).read(f"mgdet-{__version__}.dist-info/entry_points.txt").decode()
    assert "mgdet = mgdet.cli.main:main" in entry


def test_train_and_predict_from_an_empty_directory(place):
    assert str(place.packages) in place.run("python", "-c", "import mgdet; print(mgdet.__file__)").stdout
    assert place.mgdet("--version") == f"mgdet {__version__}\n"
    listed = place.mgdet("configs")
    assert "quickstart" in listed
    assert "sweeps/quick" in listed
    assert "best checkpoint" in place.mgdet("train", *SMALL)
    place.run("python", "-c", "from PIL import Image; Image.new('RGB', (70, 50)).save('photo.png')")
    done = place.run("python", "-c", SCRIPT)
    assert done.stdout == f"{place.packages}/mgdet/__init__.py (50, 70)\n", done.stderr
    assert "every one would be valid" in place.mgdet("tune", "quick", "--check")
