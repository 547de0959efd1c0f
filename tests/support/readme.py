"""Reads the code blocks of a Markdown file, and the server command that one of them gives."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, Any

from sybil.document import Document
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

if TYPE_CHECKING:
    from pathlib import Path

_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)


def blocks(path: Path, language: str) -> list[str]:
    """Return the fenced blocks of this language, in order."""
    parser = CodeBlockParser(language=language, evaluator=lambda _: None)
    return [str(example.parsed) for example in Document.parse(str(path), parser).examples()]


def run(path: Path, namespace: dict[str, Any] | None = None) -> int:
    """Run the Python blocks of a file in order, in one namespace, and return how many there were."""
    document = Document.parse(str(path), PythonCodeBlockParser())
    document.namespace.update(namespace or {})
    examples = list(document.examples())
    for example in examples:
        example.evaluate()
    return len(examples)


def serve_command(block: str) -> tuple[dict[str, str], list[str]]:
    """Return the settings and the words of the one command in a shell block, leaving out ``export`` lines."""
    lines = [line for line in block.replace("\\\n", " ").splitlines() if line.strip()]
    commands = [shlex.split(line) for line in lines if not line.startswith("export ")]
    if len(commands) != 1:
        raise ValueError(f"{len(commands)} commands where one is expected")
    env: dict[str, str] = {}
    words = commands[0]
    while words and (setting := _ASSIGNMENT.fullmatch(words[0])):
        env[setting[1]] = setting[2]
        words = words[1:]
    return env, words
