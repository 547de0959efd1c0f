"""The pages keep to plain words: these phrases made readers stop and read again."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGES = [
    *ROOT.glob("*.md"),
    *ROOT.glob("docs/*.md"),
    *ROOT.glob("docs/adr/*.md"),
    *ROOT.glob("examples/**/*.md"),
]
WRITTEN = [page for page in PAGES if page.name != "modules.md"]  # which is taken from the code
PHRASES = ("whoever", "take note", "takes note", "what stands", "of which")


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_phrase_that_makes_a_reader_guess(page):
    text = " ".join(page.read_text().lower().split())
    assert not [phrase for phrase in PHRASES if phrase in text]
