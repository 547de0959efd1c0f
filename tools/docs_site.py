"""Hooks of MkDocs: the Markdown files outside docs/ are pages of the site, too, and links lead there.

GitHub and the site show the same files. Their links are GitHub's; here they are turned into the site's.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    "README.md": "quickstart.md",
    "examples/README.md": "examples/index.md",
    "examples/fleet/README.md": "examples/fleet.md",
    "changes/README.md": "news.md",
} | {name: name.lower() for name in ("ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")}
LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")
FENCE = re.compile(r"(^```.*?^```\n)", re.MULTILINE | re.DOTALL)
BEFORE_BLOCK = re.compile(r"^(?!- |1\. |[|#\s])(.+)\n(?=- |1\. |\|)", re.MULTILINE)
CODE = re.compile(r"`[^`\n]+`")


def on_config(config: Any) -> None:
    """Put the pages into the navigation, and every decision."""
    decisions = [f"adr/{path.name}" for path in sorted((ROOT / "docs/adr").glob("*.md"))]
    for entry in (one for section in config.nav for entries in section.values() for one in entries):
        for title, target in entry.items() if isinstance(entry, dict) else ():
            entry[title] = decisions if target == "adr" else PAGES.get(target, target)


def on_files(files: Any, config: Any) -> None:
    """Add the pages, and the examples and configurations that they link to."""
    from mkdocs.structure.files import File

    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text(encoding="utf-8")))
    for path in (*(ROOT / "examples").glob("*.*"), *(ROOT / "deploy").rglob("*")):
        if path.is_file() and path.suffix != ".md":
            files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead links to pages; put an empty line before lists and tables; pipes in code need no escape here."""
    uri = page.file.src_uri
    source = next((name for name, target in PAGES.items() if target == uri), f"docs/{uri}")
    text = LINK.sub(lambda link: f"]({site_link(source, uri, link[1])}{link[2] or ''})", markdown)
    first, *others = FENCE.split(CODE.sub(lambda code: code[0].replace(r"\|", "|"), text))
    parts = [first, *(part if part.startswith("```") else f"\n{part}" for part in others)]
    return "".join(part if part.startswith("```") else BEFORE_BLOCK.sub(r"\1\n\n", part) for part in parts)


def site_link(source: str, uri: str, link: str) -> str:
    """Return where the link of a repository's file leads in the site; a folder's, to the page that is about it."""
    target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
    if (ROOT / target).is_dir():
        about = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / target).glob("*.md"))]
        parent = f"{posixpath.dirname(target)}/README.md"
        target = next((one for one in about if one in PAGES or "/docs/" in f"/{one}"), parent)
    return posixpath.relpath(PAGES.get(target, target.removeprefix("docs/")), posixpath.dirname(uri) or ".")
