"""What is refused before llguidance sees it, because it could take the process with it.

llguidance reports nearly every bad grammar as an error. But it follows references by recursion, so a long chain of
rules or ``$ref`` overflows the stack; and it writes some repetitions out, which can take all memory. On stacks of
8 MiB, chains crashed llguidance 1.7.6 from 1,300 schemas on, 2,000 Lark rules, or 4,000 Lark groups. And for an
integer below all that 64 bits can hold, it calls itself without an end (1.9.1). The unit tests compile grammars at
the limits below.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from pdd_core.errors import InvalidGrammar
from pdd_llamacpp_adapter.request import Grammar, GrammarKind

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_CHARACTERS = {GrammarKind.JSON: 65_536, GrammarKind.REGEX: 8_192, GrammarKind.GRAMMAR: 16_384}
MAX_CHARACTERS[GrammarKind.CHOICE] = MAX_CHARACTERS[GrammarKind.GRAMMAR]
MAX_NESTING = 64
"""Objects and arrays inside one another in a schema: vLLM's ``MAX_STRUCTURED_OUTPUT_JSON_NESTING``."""
MAX_CHAIN = 1_000
"""The nesting of a schema and of everything it refers to, one inside the other."""
MAX_ITEMS = 10_000
"""All minItems and maxItems of a schema together; each item is written out."""
MAX_PATTERNS = 64
LEAST_CONSTANT = 1024 - 2**63
"""Of the numbers in `enum` and `const`: the next float below it is -2**63, whose magnitude no i64 holds."""
MAX_LARK_LEVELS = 2_000
"""Groups, and twice the rules, of a Lark grammar: all could lie inside one another."""
MAX_LARK_REPETITION = 1_000

# possessive throughout: linear in the text, whatever is in it
_GAP = r"(?:\s|//[^\n]*\n)*+"
_BRACES = rf"\{{{_GAP}(\d*+){_GAP},?{_GAP}(\d*+){_GAP}\}}"
_RANGE = rf"~{_GAP}(\d++)(?:{_GAP}\.\.{_GAP}(\d++))?"
_LARK_REPETITION = re.compile(f"{_BRACES}|{_RANGE}")
_LARK_ITEMS = re.compile(r'"(?:min|max)Items"\s*+:\s*+(\d++)')
_LARK_CONSTANT = re.compile(r"-\d{19}|-[\d.]++[eE]")
"""What could be a number below `LEAST_CONSTANT`."""
_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")


def check_limits(grammar: Grammar) -> None:
    """Refuse what could not be compiled safely.

    Raises:
        InvalidGrammar: `grammar` is over a limit, or is no JSON where it should be.
    """
    limit = MAX_CHARACTERS.get(grammar.kind)
    if limit is not None and len(grammar.text) > limit:
        raise InvalidGrammar(
            f"the grammar has {len(grammar.text)} characters, more than {limit}", param=grammar.param
        )
    reason = None
    if grammar.kind is GrammarKind.JSON:
        reason = _schema_excess(grammar.text)
    elif grammar.kind is GrammarKind.GRAMMAR:
        reason = _lark_excess(grammar.text)
    if reason is not None:
        raise InvalidGrammar(f"the grammar cannot be used: {reason}", param=grammar.param)


def _schema_excess(text: str) -> str | None:
    try:
        schema = json.loads(text)
    except RecursionError:
        return f"the schema nests deeper than {MAX_NESTING}"
    except ValueError as error:
        return f"the schema is not JSON: {error}"
    nesting = _nesting(schema)
    if nesting > MAX_NESTING:
        return f"the schema nests deeper than {MAX_NESTING}"
    objects = [node for node in _containers(schema) if isinstance(node, dict)]
    targets = {ref for node in objects if isinstance(ref := node.get("$ref"), str)}
    for ref in targets:
        nesting += _nesting(_referred(schema, ref))
        if nesting > MAX_CHAIN:
            return "the schema's references lead too deep"
    counts = [node.get(key) for node in objects for key in ("minItems", "maxItems")]
    if sum(count for count in counts if isinstance(count, int)) > MAX_ITEMS:
        return f"minItems and maxItems are more than {MAX_ITEMS} together"
    constants = [node.get(key) for node in objects for key in ("const", "enum")]
    if any(value < LEAST_CONSTANT for value in _numbers(constants)):
        return "a constant is below all 64-bit integers"
    patterns = [pattern for node in objects for pattern in _patterns(node)]
    if len(patterns) > MAX_PATTERNS:
        return f"the schema has more than {MAX_PATTERNS} patterns"
    if sum(map(len, patterns)) > MAX_CHARACTERS[GrammarKind.REGEX]:
        return f"the patterns have more than {MAX_CHARACTERS[GrammarKind.REGEX]} characters together"
    return None


def _containers(node: Any) -> Iterator[dict[str, Any] | list[Any]]:
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict | list):
            yield node
            waiting.extend(node.values() if isinstance(node, dict) else node)


def _numbers(node: Any) -> Iterator[float]:
    for container in _containers(node):
        values = container.values() if isinstance(container, dict) else container
        yield from (value for value in values if isinstance(value, int | float))


def _nesting(node: Any) -> int:
    """Return how deep objects and arrays nest in `node`; one more than allowed means that many or more."""
    level, depth = [node], 0
    while depth <= MAX_NESTING:
        level = [child for child in level if isinstance(child, dict | list)]
        if not level:
            break
        level = [inner for child in level for inner in (child.values() if isinstance(child, dict) else child)]
        depth += 1
    return depth


def _referred(schema: Any, ref: str) -> Any:
    """Return what `ref` points at, or the whole schema where only llguidance knows."""
    node = schema
    for part in unquote(ref).removeprefix("#").split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(node, dict) or key not in node:
            return schema
        node = node[key]
    return node


def _patterns(node: dict[str, Any]) -> list[str]:
    named = node.get("patternProperties")
    patterns = list(named) if isinstance(named, dict) else []
    return [*patterns, pattern] if isinstance(pattern := node.get("pattern"), str) else patterns


def _lark_excess(text: str) -> str | None:
    if sum(map(text.count, "([{~")) + 2 * text.count(":") > MAX_LARK_LEVELS:
        return "it has too many rules and groups"
    counts = (_number(digits) for found in _LARK_REPETITION.findall(text) for digits in found if digits)
    if max(counts, default=0) > MAX_LARK_REPETITION:
        return f"a repetition has more than {MAX_LARK_REPETITION} parts"
    plain = _ESCAPE.sub(lambda found: chr(int(found[1], 16)), text)
    if "%json" in text and _LARK_CONSTANT.search(plain):
        return "a constant is below all 64-bit integers"
    if sum(map(_number, _LARK_ITEMS.findall(plain))) > MAX_ITEMS:
        return f"minItems and maxItems are more than {MAX_ITEMS} together"
    return None


def _number(digits: str) -> int:
    """Return the value of `digits`; of more than nine, that of the first nine, which no limit allows either."""
    return int(digits.lstrip("0")[:9] or "0")
