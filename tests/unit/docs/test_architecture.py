"""ARCHITECTURE.md names every module and no other, and the packages import only what it says."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SRC = ROOT / "src"
TEXT = (ROOT / "ARCHITECTURE.md").read_text()
PACKAGES = ("pdd_core", "pdd_vllm_plugin", "pdd_llamacpp_adapter", "pdd_cli")

ENGINES = {"vllm", "torch", "transformers", "llama_cpp"}
FORBIDDEN = {
    "pdd_core": {*ENGINES, "pdd_vllm_plugin", "pdd_llamacpp_adapter", "pdd_cli"},
    "pdd_vllm_plugin": {"llama_cpp", "pdd_llamacpp_adapter", "pdd_cli"},
    "pdd_llamacpp_adapter": {"vllm", "torch", "pdd_vllm_plugin", "pdd_cli"},
    "pdd_cli": {"pdd_vllm_plugin"},
}


def modules(package):
    folder = SRC / package
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.py")}


def named(package):
    section = TEXT.split(f"### {package}\n")[1].split("\n#")[0]
    return re.findall(r"^\| `([\w/]+\.py)` \|", section, re.MULTILINE)


def imported(path):
    """Names of the packages that a module imports, wherever in it, those for type checking included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


def test_there_are_four_packages():
    assert {path.parent.name for path in SRC.glob("*/__init__.py")} == set(PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_is_named_once_and_every_named_one_exists(package):
    names = named(package)
    assert sorted(names) == sorted(modules(package))


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


@pytest.mark.parametrize("package", PACKAGES)
def test_no_package_imports_what_it_must_not(package):
    found = {path.name: FORBIDDEN[package] & set(imported(path)) for path in (SRC / package).rglob("*.py")}
    assert not {name: names for name, names in found.items() if names}


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
