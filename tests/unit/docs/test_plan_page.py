"""What docs/plan.md shows is so: options, fields, formats, and code that runs."""

import inspect
import json
import re
import tomllib
from pathlib import Path

import pytest
from readme import blocks, run
from typer.testing import CliRunner

from pdd_cli.main import app
from pdd_lab.plan.builtin import CLOUDS, DEVICES
from pdd_lab.plan.command import plan
from pdd_lab.plan.fleet import FleetFile
from pdd_lab.traces import FORMATS, SYNTHETIC, load

pytest.importorskip("polars")
pytest.importorskip("scipy")

PAGE = Path(__file__).parents[3] / "docs" / "plan.md"
TEXT = PAGE.read_text()


def section(title):
    return TEXT.split(f"## {title}\n")[1].split("\n## ")[0]


def test_every_option_has_its_row():
    rows = [row.split("|")[1] for row in section("Options").split("\n\n")[0].splitlines()]
    shown = re.findall(r"`--([\w-]+)`", "".join(rows))
    names = [name.replace("_", "-") for name in inspect.signature(plan).parameters if name != "context"]  # typer's
    assert sorted(shown) == sorted(names)


def test_every_format_profile_and_trace_is_named():
    assert re.findall(r"^\| `(\w+)` \| (?:CSV|JSON)", section("Traces"), re.MULTILINE) == list(FORMATS)
    for name in (*CLOUDS, *DEVICES):
        assert f"`{name}`" in section("Profiles")
    for name in SYNTHETIC:
        assert f"`{name}`" in section("Options")


def test_our_own_lines_can_be_read(tmp_path):
    file = tmp_path / "own.jsonl"
    file.write_text(blocks(PAGE, "json")[0])
    trace = load(file)
    assert (len(trace), trace.hashes(1).tolist(), trace.group(1)) == (2, [7, 8], "mail")


def test_the_fleet_that_is_shown_can_be_read():
    assert FleetFile.model_validate(tomllib.loads(blocks(PAGE, "toml")[0])).gpus == 2


def test_every_field_of_a_policy_has_its_row(tmp_path):
    command = blocks(PAGE, "bash")[0].splitlines()[-1].split()[1:]
    done = CliRunner().invoke(app, [*command, "--requests=60", f"--json={tmp_path / 'f'}"], catch_exceptions=False)
    assert done.exit_code == 0
    found = json.loads((tmp_path / "f").read_text())
    named = re.findall(
        r"`(\w+)`", "".join(row.split("|")[1] for row in section("JSON").splitlines() if "| `" in row)
    )
    assert sorted(named) == sorted(found["policies"]["planner"])
    assert not [name for name in found if f"`{name}`" not in section("JSON")]


def test_the_code_runs():
    assert run(PAGE) == 1
