from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from importlib.metadata import EntryPoint

import pytest
import typer
from typer.testing import CliRunner

from pdd_cli import extensions

GREETINGS = """
    import typer

    told = "no command"
    several = typer.Typer()

    def hello(name: str = "you") -> None:
        '''Greet somebody.'''
        print("hello", name)

    @several.command()
    def first() -> None:
        print("the first of several")

    @several.command()
    def second() -> None:
        print("the second of several")
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """An app with the commands of some entry points, into a module of a third party."""
    (tmp_path / "greetings_of_others.py").write_text(textwrap.dedent(GREETINGS))
    (tmp_path / "broken_of_others.py").write_text("raise RuntimeError('no such device')")
    monkeypatch.syspath_prepend(str(tmp_path))

    def made(**values: str) -> typer.Typer:
        entries = [EntryPoint(name, value, extensions.GROUP) for name, value in values.items()]
        monkeypatch.setattr(
            extensions, "entry_points", lambda *, group: entries if group == extensions.GROUP else []
        )
        app = typer.Typer()
        app.command("built-in")(lambda: print("built in"))
        extensions.add_installed(app)
        return app

    yield made
    sys.modules.pop("greetings_of_others", None)


def out(app: typer.Typer, *arguments: str) -> str:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    return done.output


def test_a_function_and_a_typer_of_a_third_party_are_commands(installed) -> None:
    app = installed(hello="greetings_of_others:hello", many="greetings_of_others:several")
    assert out(app, "hello", "--name", "reader") == "hello reader\n"
    assert out(app, "many", "second") == "the second of several\n"
    assert "Greet somebody." in out(app, "--help")
    assert out(app, "built-in") == "built in\n"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("broken_of_others:command", "no such device"),
        ("module_that_is_not_there:command", "module_that_is_not_there"),
        ("greetings_of_others:goodbye", "goodbye"),
        ("greetings_of_others:told", "neither a function nor a Typer"),
    ],
)
def test_a_command_that_cannot_be_loaded_is_left_out_and_takes_no_other_down(
    installed, capsys, value: str, reason: str
) -> None:
    app = installed(bad=value, hello="greetings_of_others:hello")
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("pdd-device: the command bad cannot be loaded: ")
    assert reason in line
    assert out(app, "hello") == "hello you\n"
    assert "bad" not in out(app, "--help")
    assert CliRunner().invoke(app, ["bad"]).exit_code == 2


def without_the_laboratory(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = textwrap.dedent(f"""
        import sys
        import pdd_cli.extensions
        pdd_cli.extensions.entry_points = lambda *, group: []
        sys.argv = {["pdd-device", *arguments]!r}
        from pdd_cli.main import main
        main()
    """)
    env = {**os.environ, "COLUMNS": "100"}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=env)


@pytest.mark.parametrize(
    "arguments",
    [
        ("plan",),
        ("plan", "--trace", "chat", "--plot", "front.png"),
        ("replay", "--help"),
        ("bench", "device", "--gguf", "model.gguf"),
        ("eval", "refine"),
    ],
)
def test_without_the_laboratory_its_commands_say_how_to_install_it(arguments) -> None:
    done = without_the_laboratory(*arguments)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith(f"pdd-device: pdd-device {arguments[0]} is part of pdd-lab: ")
    assert "pip install . ./src/pdd_lab" in line


def test_without_the_laboratory_the_help_does_not_name_its_commands(installed) -> None:
    shown = out(installed(hello="greetings_of_others:hello"), "--help")
    assert "hello" in shown
    assert not set(shown.split()) & set(extensions.LAB)


def test_the_laboratorys_commands_are_installed_ones() -> None:
    app = typer.Typer()
    extensions.add_installed(app)
    shown = out(app, "--help").split()
    assert set(extensions.LAB) <= set(shown)
