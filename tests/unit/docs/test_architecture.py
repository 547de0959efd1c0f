"""ARCHITECTURE.md names what is there. Who may import whom is checked by import-linter: see pyproject.toml."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SRC = ROOT / "src"
TEXT = (ROOT / "ARCHITECTURE.md").read_text()
PACKAGES = ("pdd_core", "pdd_vllm_plugin", "pdd_llamacpp_adapter", "pdd_cli", "pdd_lab")


def test_every_package_is_known():
    assert {path.parent.name for path in SRC.glob("*/__init__.py")} == set(PACKAGES)


@pytest.mark.parametrize("page", ["modules", "cli", "settings", "errors", "fields", "hooks", "wire"])
def test_the_reference_pages_are_what_the_code_says(page):
    """Every module is on its page, with the first line of its docstring: a missing one ends the script."""
    script = ROOT / "tools" / "reference.py"
    done = subprocess.run([sys.executable, script, "--check", page], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_reference_page_is_written_by_the_script():
    assert {path.stem for path in (ROOT / "docs/reference").iterdir()} == {
        "cli",
        "settings",
        "errors",
        "fields",
        "hooks",
        "wire",
    }


def test_it_is_short():
    assert len(TEXT.encode()) <= 10_000


def test_every_step_names_what_is_there():
    steps = re.findall(r"`(\w+)\.py: ([\w.]+)`", TEXT)
    assert len(steps) > 20
    for stem, name in steps:
        sources = [path.read_text() for path in SRC.rglob(f"{stem}.py")]
        assert sources, stem
        for part in name.split("."):
            assert any(re.search(rf"^\s*(async )?(class|def) {part}\b", text, re.MULTILINE) for text in sources), (
                f"{stem}.py has no {part}"
            )


def test_only_env_reads_our_variables():
    readers = re.compile(r"os\.(environ|getenv)\b.*PDD_")
    for path in SRC.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if path.name != "env.py" and isinstance(node, ast.Subscript | ast.Call):
                assert not readers.match(ast.unparse(node)), path


def test_linked_files_exist():
    for path in [
        *ROOT.glob("*.md"),
        *(path for name in ("docs", "examples", "changes") for path in ROOT.glob(f"{name}/**/*.md")),
    ]:
        for target in re.findall(r"\]\((?!https?://)([^)#]+)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"
