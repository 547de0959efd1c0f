"""Pages and code keep to plain words: these phrases made readers stop and read again."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGES = [
    *ROOT.glob("*.md"),
    *ROOT.glob("docs/*.md"),
    *ROOT.glob("docs/adr/*.md"),
    *ROOT.glob("examples/**/*.md"),
]
PACKAGES = sorted(ROOT.glob("src/*/__init__.py"))
PHRASES = ("whoever", "take note", "takes note", "what stands", "of which")


def found_in(path):
    text = " ".join(path.read_text(encoding="utf-8").lower().split())
    return [phrase for phrase in PHRASES if phrase in text]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_phrase_that_makes_a_reader_guess(page):
    assert not found_in(page)


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.parent.name)
def test_nor_does_the_code_have_one(package):
    found = {path.name: phrases for path in package.parent.rglob("*.py") if (phrases := found_in(path))}
    assert not found
