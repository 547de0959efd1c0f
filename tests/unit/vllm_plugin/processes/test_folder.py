"""The shared folder is this user's alone, and goes with the last process."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pdd_core.errors import UnsupportedDeployment
from pdd_vllm_plugin.processes.folder import LONGEST_PATH, SharedFolder, default_base


def test_only_this_user_can_look_into_it(base):
    folder = SharedFolder(base, "a")
    found = folder.path.stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o700, os.geteuid())
    folder.leave()


def test_the_last_one_removes_it(base):
    first, second = SharedFolder(base, "a"), SharedFolder(base, "a")
    assert first.path == second.path
    (first.path / "0.sock").touch()
    first.leave()
    assert second.path.exists()
    second.leave()
    assert not list(base.iterdir())


def folder_of(base):
    return base / f"pdd-{os.geteuid()}-a"


@pytest.mark.parametrize("mode", [0o755, 0o710, 0o701, 0o777])
def test_one_that_others_may_enter_is_refused(base, mode):
    folder_of(base).mkdir()
    folder_of(base).chmod(mode)
    with pytest.raises(UnsupportedDeployment, match="others may enter it: remove it"):
        SharedFolder(base, "a")
    assert list(folder_of(base).iterdir()) == []


def test_another_users_is_refused(base, monkeypatch):
    path = folder_of(base)
    path.mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.chown(path, 12345, 12345)
    else:
        real = os.fstat
        monkeypatch.setattr(os, "fstat", lambda fd: os.stat_result([*real(fd)[:4], 12345, *real(fd)[5:10]]))
    with pytest.raises(UnsupportedDeployment, match="another user"):
        SharedFolder(base, "a")


def test_a_link_to_somewhere_else_is_refused(base):
    (base / "theirs").mkdir(mode=0o700)
    folder_of(base).symlink_to(base / "theirs")
    with pytest.raises(UnsupportedDeployment, match="remove it"):
        SharedFolder(base, "a")


def test_a_file_in_its_place_is_refused(base):
    folder_of(base).touch()
    with pytest.raises(UnsupportedDeployment, match="remove it"):
        SharedFolder(base, "a")


def test_a_path_that_no_socket_can_have_is_refused_with_the_setting_to_change(base):
    long = base / ("x" * LONGEST_PATH)
    long.mkdir()
    with pytest.raises(UnsupportedDeployment, match="TMPDIR"):
        SharedFolder(long, "a")


def test_a_base_that_cannot_be_written_is_refused(base):
    with pytest.raises(UnsupportedDeployment, match="cannot share"):
        SharedFolder(base / "missing", "a")


HOLD = """
import sys
from pathlib import Path
from pdd_vllm_plugin.processes.folder import SharedFolder
SharedFolder(Path(sys.argv[1]), sys.argv[2])
print("held", flush=True)
sys.stdin.read()
"""


def test_the_folder_of_a_server_that_was_killed_is_removed_and_that_of_one_that_runs_stays(base):
    def hold(server):
        command = [sys.executable, "-c", HOLD, str(base), server]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "held\n"
        return process

    with hold("killed") as killed, hold("running") as running:
        killed.kill()
        killed.wait()
        (base / "pdd-0-of-somebody-else").mkdir()
        own = SharedFolder(base, "own")
        names = {path.name.rpartition("-")[2] for path in base.iterdir()}
        assert names == {"running", "own", "else"}
        own.leave()
        running.communicate("")


def test_it_is_in_memory_where_there_is_a_file_system_for_that(monkeypatch, base):
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(base))
    monkeypatch.setattr(os, "access", lambda path, _: path == Path("/dev/shm"))  # noqa: S108
    assert default_base() == Path("/dev/shm")  # noqa: S108
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert default_base() == base
