"""The device's half starts where a system lacks what is only POSIX's."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import os, signal, socket, sys
import anyio, asyncio, numpy, openai, rich, starlette.applications, subprocess, tempfile, typer, uvicorn
sys.modules.update(dict.fromkeys(("fcntl", "grp", "pwd", "resource", "termios", "tty")))
for module, names in (
    (os, ("fork", "geteuid", "getuid", "killpg", "sched_getaffinity", "setsid", "statvfs", "sysconf", "uname")),
    (signal, ("SIGHUP", "SIGKILL", "SIGUSR1", "pthread_sigmask")),
    (socket, ("AF_UNIX",)),
):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
import pdd_cli.doctor.report, pdd_cli.generate.run, pdd_cli.main, pdd_cli.serve.run
import pdd_llamacpp_adapter.runtime.serving, pdd_llamacpp_adapter.server.run
from pdd_cli.host import cpu_count
from pdd_llamacpp_adapter.engine.hardware.threads import physical_cores
assert cpu_count() >= 1 and physical_cores() >= 1
"""


def test_it_is_imported_without_what_windows_lacks() -> None:
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, timeout=120)
