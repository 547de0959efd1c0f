"""Which of vLLM's parsers reads a model's tool calls, told from its chat template."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pdd_core.errors import PDDError

if TYPE_CHECKING:
    from pathlib import Path


def tool_parser_of(folder: Path) -> str | None:
    """Return the name for ``--tool-call-parser``; None if the template of the model in `folder` does not tell.

    The device reads the calls of the same template in the same form (`tool_formats.py: format_of`).
    """
    from pdd_llamacpp_adapter.engine.chat_template import ChatTemplate
    from pdd_llamacpp_adapter.server.tools.tool_formats import format_of

    config = _config(folder)
    try:
        source = _source(folder, config)
        template = ChatTemplate(source, bos=_token(config, "bos_token"), eos=_token(config, "eos_token"))
        form = format_of(template)
    except (OSError, ValueError, PDDError):  # vLLM will say what is wrong with it
        return None
    return form.parser if form is not None else None


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def _source(folder: Path, config: dict[str, Any]) -> str | None:
    """Return the template that transformers takes when there are tools."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {one.get("name"): one.get("template") for one in template if isinstance(one, dict)}
        template = named.get("tool_use", named.get("default"))
    return template if isinstance(template, str) else None


def _token(config: dict[str, Any], name: str) -> str:
    token = config.get(name)
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""
