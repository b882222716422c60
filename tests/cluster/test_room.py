"""Ray's session directory on a disk without room: an error with the numbers, not silence."""

import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from mgdet.cluster import room, session
from mgdet.cluster.room import require_room, require_start
from mgdet.errors import ClusterError
from mgdet.runs.config import ClusterConfig


@pytest.fixture
def disk():
    """Mounts a disk of these properties, at a path that is short enough for sockets."""
    mounted, made = [], []

    def make(options):
        place = Path(tempfile.mkdtemp(prefix="disk", dir="/tmp"))
        made.append(place)
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        mounted.append(place)
        return place

    yield make
    for place in mounted:
        subprocess.run(["umount", "-l", place], check=True)
    for place in made:
        place.rmdir()


def test_a_disk_with_room_is_used(disk):
    place = disk("size=256m") / "ray"
    require_room(place)
    assert list(place.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [("size=20m", "it has 20 MiB"), ("size=256m,nr_inodes=100", "room for 9"), ("size=256m,ro", "Read-only")],
    ids=["bytes", "files", "read-only"],
)
def test_a_disk_without_room_is_refused(disk, options, said):
    with pytest.raises(ClusterError, match=rf"{said}.*64 MiB and 500 files.*RAY_TMPDIR"):
        require_room(disk(options) / "ray")


@pytest.mark.parametrize("character", ["a", "é"])
def test_a_path_that_is_too_long_for_sockets_is_refused(character):
    longest = 107 - len(f"/session_2026-11-29_15-01-10_782252_{os.getpid()}/sockets/plasma_store")
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        place = Path(directory) / "ray"
        room_left = longest - len(os.fsencode(place)) - 1
        require_room(place)
        require_room(place / ("a" * room_left))
        with pytest.raises(ClusterError, match=rf"leave it {longest} at most\. Set RAY_TMPDIR to a shorter path"):
            require_room(place / (character * (room_left + (character == "a"))))


def test_a_quota_is_found_by_writing(monkeypatch):
    def write(self, data):
        raise OSError(122, "Disk quota exceeded")

    monkeypatch.setattr(Path, "write_bytes", write)
    with pytest.raises(ClusterError, match="Disk quota exceeded"):
        require_room(Path("/tmp"))


def test_ray_is_not_started_there(disk, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(disk("size=1m")))
    monkeypatch.setattr("ray.init", lambda **options: pytest.fail("Ray was started"))
    with pytest.raises(ClusterError, match=r"session directory /tmp/disk\w+/ray"), session.session(ClusterConfig()):
        pytest.fail("a session")


def test_a_cluster_that_starts_no_process_is_given_up(monkeypatch, tmp_path):
    import ray

    class Never:
        def __call__(self, function):
            return self

        def remote(self):
            return None

    def get(answer, timeout):
        assert timeout == room.START_S == 60
        raise ray.exceptions.GetTimeoutError("timed out")

    monkeypatch.setattr(ray, "remote", lambda **options: Never())
    monkeypatch.setattr(ray, "get", get)
    with pytest.raises(ClusterError, match=r"no process within 60 s \(GetTimeoutError\)"):
        require_start(tmp_path)


@pytest.mark.exhaustive
@pytest.mark.usefixtures("no_ray_left_behind")
def test_ray_starts_on_a_small_disk(disk, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", str(disk("size=100m")))
    with session.session(ClusterConfig()):
        assert os.listdir(Path(os.environ["RAY_TMPDIR"]) / "ray")
