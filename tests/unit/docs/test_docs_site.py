"""Links that are right on GitHub lead to the site's pages. `mkdocs build --strict` checks that they are there."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[3]
SPEC = importlib.util.spec_from_file_location("docs_site", ROOT / "tools/docs_site.py")
site = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(site)


@pytest.mark.parametrize(
    ("uri", "link", "leads_to"),
    [
        ("wire.md", "errors.md", "errors.md"),
        ("index.md", "../README.md#x", "quickstart.md#x"),
        ("quickstart.md", "docs/img/idea.svg", "img/idea.svg"),
        ("examples/index.md", "../docs/wire.md", "../wire.md"),
        ("examples/index.md", "openai_client.py", "openai_client.py"),
        ("reference/errors.md", "../wire.md#errors", "../wire.md#errors"),
        ("architecture.md", "docs/adr", "adr/001-the-budget-lowers-max-tokens.md"),
        ("hooks.md", "../examples/policy_package", "examples/index.md"),
        ("hooks.md", "https://example.com/a", "https://example.com/a"),
        ("hooks.md", "#pacing", "#pacing"),
    ],
)
def test_a_link_leads_to_the_page(uri, link, leads_to):
    page = SimpleNamespace(file=SimpleNamespace(src_uri=uri))
    assert site.on_page_markdown(f"a [text]({link}) b", page) == f"a [text]({leads_to}) b"


def test_lists_and_tables_are_parted_from_what_stands_before():
    page = SimpleNamespace(file=SimpleNamespace(src_uri="wire.md"))
    assert site.on_page_markdown("text:\n- a\n- b\n", page) == "text:\n\n- a\n- b\n"
    assert site.on_page_markdown("- a\n  more\n- b\n", page) == "- a\n  more\n- b\n"
    assert site.on_page_markdown("# head\n| a |\n", page) == "# head\n| a |\n"
    assert site.on_page_markdown("```yaml\nx:\n- a\n```\n| a |\n", page) == "```yaml\nx:\n- a\n```\n\n| a |\n"
    assert site.on_page_markdown("| `a \\| b` |\n", page) == "| `a | b` |\n"
