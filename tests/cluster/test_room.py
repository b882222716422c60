"""Ray's session directory on a disk without room: an error with the numbers, not silence."""

import os
import subprocess
from pathlib import Path

import pytest

from mgdet.cluster import room, session
from mgdet.cluster.room import require_room, require_start
from mgdet.errors import ClusterError
from mgdet.runs.config import ClusterConfig


@pytest.fixture
def disk(tmp_path):
    """Mounts a disk of these properties."""
    mounted = []

    def make(options):
        place = tmp_path / f"disk{len(mounted)}"
        place.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        mounted.append(place)
        return place

    yield make
    for place in mounted:
        subprocess.run(["umount", "-l", place], check=True)


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


def test_a_quota_is_found_by_writing(tmp_path, monkeypatch):
    def write(self, data):
        raise OSError(122, "Disk quota exceeded")

    monkeypatch.setattr(Path, "write_bytes", write)
    with pytest.raises(ClusterError, match="Disk quota exceeded"):
        require_room(tmp_path)


def test_ray_is_not_started_there(disk, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(disk("size=1m")))
    monkeypatch.setattr("ray.init", lambda **options: pytest.fail("Ray was started"))
    with pytest.raises(ClusterError, match=r"session directory .*disk0/ray"), session.session(ClusterConfig()):
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
