"""The shared folder is this user's alone, and goes with the last process."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pdd_core.errors import UnsupportedDeployment
from pdd_vllm_plugin.processes.folder import LONGEST_PATH, SharedFolder, default_base


def test_only_this_user_can_look_into_it(tmp_path):
    folder = SharedFolder(tmp_path, "a")
    found = folder.path.stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o700, os.geteuid())
    folder.leave()


def test_the_last_one_removes_it(tmp_path):
    first, second = SharedFolder(tmp_path, "a"), SharedFolder(tmp_path, "a")
    assert first.path == second.path
    (first.path / "0.sock").touch()
    first.leave()
    assert second.path.exists()
    second.leave()
    assert not list(tmp_path.iterdir())


def folder_of(base):
    return base / f"pdd-{os.geteuid()}-a"


@pytest.mark.parametrize("mode", [0o755, 0o710, 0o701, 0o777])
def test_one_that_others_may_enter_is_refused(tmp_path, mode):
    folder_of(tmp_path).mkdir()
    folder_of(tmp_path).chmod(mode)
    with pytest.raises(UnsupportedDeployment, match="others may enter it: remove it"):
        SharedFolder(tmp_path, "a")
    assert list(folder_of(tmp_path).iterdir()) == []


def test_another_users_is_refused(tmp_path, monkeypatch):
    path = folder_of(tmp_path)
    path.mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.chown(path, 12345, 12345)
    else:
        real = os.fstat
        monkeypatch.setattr(os, "fstat", lambda fd: os.stat_result([*real(fd)[:4], 12345, *real(fd)[5:10]]))
    with pytest.raises(UnsupportedDeployment, match="another user"):
        SharedFolder(tmp_path, "a")


def test_a_link_to_somewhere_else_is_refused(tmp_path):
    (tmp_path / "theirs").mkdir(mode=0o700)
    folder_of(tmp_path).symlink_to(tmp_path / "theirs")
    with pytest.raises(UnsupportedDeployment, match="remove it"):
        SharedFolder(tmp_path, "a")


def test_a_file_in_its_place_is_refused(tmp_path):
    folder_of(tmp_path).touch()
    with pytest.raises(UnsupportedDeployment, match="remove it"):
        SharedFolder(tmp_path, "a")


def test_a_path_that_no_socket_can_have_is_refused_with_the_setting_to_change(tmp_path):
    base = tmp_path / ("x" * LONGEST_PATH)
    base.mkdir()
    with pytest.raises(UnsupportedDeployment, match="TMPDIR"):
        SharedFolder(base, "a")


def test_a_base_that_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(UnsupportedDeployment, match="cannot share"):
        SharedFolder(tmp_path / "missing", "a")


HOLD = """
import sys
from pathlib import Path
from pdd_vllm_plugin.processes.folder import SharedFolder
SharedFolder(Path(sys.argv[1]), sys.argv[2])
print("held", flush=True)
sys.stdin.read()
"""


def test_the_folder_of_a_server_that_was_killed_is_removed_and_that_of_one_that_runs_stays(tmp_path):
    def hold(server):
        command = [sys.executable, "-c", HOLD, str(tmp_path), server]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "held\n"
        return process

    with hold("killed") as killed, hold("running") as running:
        killed.kill()
        killed.wait()
        (tmp_path / "pdd-0-of-somebody-else").mkdir()
        own = SharedFolder(tmp_path, "own")
        names = {path.name.rpartition("-")[2] for path in tmp_path.iterdir()}
        assert names == {"running", "own", "else"}
        own.leave()
        running.communicate("")


def test_it_is_in_memory_where_there_is_a_file_system_for_that(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(os, "access", lambda path, _: path == Path("/dev/shm"))  # noqa: S108
    assert default_base() == Path("/dev/shm")  # noqa: S108
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert default_base() == tmp_path
