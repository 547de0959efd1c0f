"""A grammar as both engines are to have it, whatever the settings of the cloud's."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

from pdd_core.handoff import StructuredOutputs
from pdd_llamacpp_adapter.engine.explicit_schema import explicit_schema
from pdd_llamacpp_adapter.engine.grammar_limits import check_limits
from pdd_llamacpp_adapter.engine.plain_pattern import ascii_digits, is_plain
from pdd_llamacpp_adapter.request import GrammarKind

if TYPE_CHECKING:
    from pdd_llamacpp_adapter.request import Grammar

_DEVICE_S = "guidance"
"""vLLM's name for llguidance, by which the device goes, too."""
_COMPARED = ("auto", "xgrammar")


def explicit_grammar(grammar: Grammar, cloud: StructuredOutputs | None) -> Grammar:
    """Return `grammar` as both engines are to have it; what is explicit already stays as it is.

    Args:
        grammar: what an answer has to look like.
        cloud: how the cloud reads schemas; None where it has not told, or where there is none. Then as vLLM does
            by default.

    Raises:
        InvalidGrammar: it could not be compiled safely, or is no JSON where it should be.
    """
    if grammar.explicit:
        return grammar
    check_limits(grammar)
    told = StructuredOutputs() if cloud is None else cloud
    text, differs = grammar.text, None
    match grammar.kind:
        case GrammarKind.JSON:
            is_open = told.backend == _DEVICE_S and not told.disable_additional_properties
            made, differs = explicit_schema(json.loads(text), closed=not is_open)
            text = json.dumps(made, ensure_ascii=False)
        case GrammarKind.REGEX if is_plain(text):
            text = ascii_digits(text)
        case GrammarKind.REGEX:
            differs = "the regular expression"
        case GrammarKind.GRAMMAR:
            differs = "the grammar"
    if told.backend == _DEVICE_S:
        differs = None
    elif told.backend not in _COMPARED:
        differs = f"the cloud's grammar engine is {told.backend}"
    return replace(grammar, text=text, explicit=True, compact=told.disable_any_whitespace, differs=differs)
