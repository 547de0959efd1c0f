"""Who may use the server of `pdd-device serve`, and what becomes of it when nobody reads what it prints."""

import os
import shutil
import signal
import subprocess
import sys

import httpx2
import pytest
from cloud_support import wait_until
from device_server import SERVE, DeviceServer, closed_port

DEMO = ("--gguf", "demo", "--n-ctx", "512")


def test_without_a_key_it_does_not_listen_beyond_this_machine(tmp_path):
    """It is refused before any model is looked at."""
    flags = ("--gguf", str(tmp_path / "no-such.gguf"), "--host", "0.0.0.0")  # noqa: S104 - it must not
    done = subprocess.run([*SERVE, *flags], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "no key is set" in done.stderr
    assert "allow_no_key" in done.stderr
    assert "no-such" not in done.stderr


def test_a_missing_key_file_is_named_before_any_model_is_looked_at(tmp_path):
    flags = ("--gguf", str(tmp_path / "no-such.gguf"), "--cloud-api-key-file", str(tmp_path / "key"))
    done = subprocess.run([*SERVE, *flags], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("pdd-device: cloud_api_key_file: ")


def test_a_key_in_a_file_is_the_servers_key_and_is_not_in_its_command_line(tmp_path):
    file = tmp_path / "key"
    file.write_text("sesame\n")
    file.chmod(0o600)
    with DeviceServer(tmp_path, *DEMO, "--api-key-file", str(file)) as server:
        server.ready()
        assert server.get("/v1/models").status_code == 401
        server.api_key = "sesame"
        assert server.get("/v1/models").status_code == 200
        assert "sesame" not in " ".join(server.process.args)


@pytest.mark.parametrize(
    "redirected",
    [">&-", "> /dev/full", "> /dev/full 2>&1", ">&- 2>&-", "<&- >&- 2>&-", "2>&1 | head -n 1 > /dev/null"],
)
@pytest.mark.skipif(sys.platform != "linux", reason="needs a file that is always full")
def test_it_serves_on_when_nobody_takes_what_it_prints(redirected):
    port = closed_port()
    command = " ".join((*SERVE[:-2], *DEMO, "--port", str(port)))
    # descriptor 3 is the shell's own output: the number of the server's process, and its exit code
    line = f"exec 3>&1; {{ {command} 3>&- & echo $! >&3; wait $!; echo $? >&3; }} {redirected}"
    shell = subprocess.Popen(
        [shutil.which("bash"), "-c", line], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with shell:
        number = int(shell.stdout.readline())
        url = f"http://127.0.0.1:{port}"

        def ready():
            assert shell.poll() is None
            try:
                return httpx2.get(f"{url}/health", timeout=60).status_code == 200
            except httpx2.TransportError:
                return False

        try:
            wait_until(ready, seconds=120)
            ask = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
            for _ in range(3):
                assert httpx2.post(f"{url}/v1/chat/completions", json=ask, timeout=120).status_code == 200
        finally:
            os.kill(number, signal.SIGTERM)
        said, complaints = shell.communicate(timeout=60)
    assert int(said) == 0
    assert "Traceback" not in complaints
    assert "Exception ignored" not in complaints
