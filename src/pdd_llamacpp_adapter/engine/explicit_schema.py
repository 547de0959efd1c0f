"""A JSON schema with nothing left to an engine's defaults, so that both engines mean the same by it.

What a schema leaves open, grammar engines fill differently. With xgrammar, which vLLM takes by default, an object
has the properties that are named and no others, and a pattern is of the whole text. With llguidance, and in the
standard, neither is so. Both engines are therefore given what is made here: what the cloud takes the schema for.
tests/integration/device/test_same_language.py compares them over schemas at random.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pdd_llamacpp_adapter.engine.plain_pattern import ascii_digits, is_plain

if TYPE_CHECKING:
    from collections.abc import Iterable

Json = dict[str, Any]

_TYPES = {
    "object": ("properties", "required", "additionalProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "string": ("pattern", "minLength", "maxLength"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    "integer": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    "boolean": (),
    "null": (),
}
"""Each type with the keywords that both engines obey."""
_VALUES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "number": (int, float),
    "integer": int,
    "boolean": bool,
    "null": type(None),
}
_FAMILIES = ("object", "array", "string", "number")
_CHOICES = ("$ref", "enum", "const", "anyOf", "oneOf", "allOf")
"""Keywords that stand for a whole schema: xgrammar ignores all beside one."""
_DIFFER = frozenset((
    "not", "if", "then", "else", "dependentRequired", "dependentSchemas", "dependencies",
    "unevaluatedProperties", "unevaluatedItems", "patternProperties", "propertyNames", "minProperties",
    "maxProperties", "additionalItems", "contains", "minContains", "maxContains", "uniqueItems", "format",
    "multipleOf", "$dynamicRef", "$recursiveRef", "$anchor", "$dynamicAnchor", "x-guidance",
))  # fmt: skip
"""Keywords that one engine ignores, refuses, or reads otherwise than the other."""
_CONSTRAINTS = frozenset(("type", *_CHOICES, *_DIFFER, *(name for names in _TYPES.values() for name in names)))
"""All others are notes, such as `title`, `default` or OpenAPI's `discriminator`."""


@dataclass(slots=True)
class _Writer:
    closed: bool
    differs: list[str] = field(default_factory=list)

    def schema(self, node: Any) -> Any:
        """Return `node`, a schema, made explicit."""
        if not isinstance(node, dict):
            return node
        definitions = {name: self.each(node[name]) for name in ("$defs", "definitions") if name in node}
        notes = {name: value for name, value in node.items() if name not in _CONSTRAINTS}
        self.differs += sorted(_DIFFER & node.keys())
        return {**notes, **definitions, **self.constraints(node)}

    def each(self, named: Any) -> Any:
        return {name: self.schema(one) for name, one in named.items()} if isinstance(named, dict) else named

    def constraints(self, node: Json) -> Json:
        rest = {name: value for name, value in node.items() if name in _CONSTRAINTS}
        choices = [name for name in _CHOICES if name in rest]
        if choices:
            return self.choice(choices[0], rest)
        kinds = rest.get("type", self.implied(rest))
        if isinstance(kinds, str):
            return self.typed(kinds, rest)
        if isinstance(kinds, list) and len(kinds) == 1:
            return self.typed(kinds[0], rest)
        if isinstance(kinds, list) and all(isinstance(kind, str) and kind in _TYPES for kind in kinds):
            families = [name for kind in _TYPES for name in _TYPES[kind]]
            shared = {name: value for name, value in rest.items() if name not in families and name != "type"}
            own = ({name: rest[name] for name in _TYPES[kind] if name in rest} for kind in kinds)
            return {"anyOf": [self.typed(kind, {**shared, **one}) for kind, one in zip(kinds, own, strict=True)]}
        return rest

    def implied(self, rest: Json) -> str | None:
        """Return the type that the keywords of an untyped schema are of, as xgrammar takes it."""
        families = [kind for kind in _FAMILIES if any(name in rest for name in _TYPES[kind])]
        if len(families) > 1:
            self.differs.append("keywords of several types without a type")
        return families[0] if len(families) == 1 else None

    def choice(self, name: str, rest: Json) -> Json:
        """Return a schema that is an alternative of others, a reference or a list of values."""
        value = rest[name]
        beside = rest.keys() - {name, *(("type",) if name in ("enum", "const") else ())}
        if beside:
            self.differs.append(f"{name} beside {min(beside)}")
        match name:
            case "anyOf" | "oneOf" if isinstance(value, list):
                made = {"anyOf": [self.schema(one) for one in value]}
                return {**rest, **made} if beside else made
            case "allOf" if isinstance(value, list):
                if len(value) == 1 and isinstance(value[0], dict) and not beside:
                    return dict(self.schema(value[0]))
                self.differs.append("allOf")
            case "const":
                self.values([value])
            case "enum" if isinstance(value, list):
                self.values(value)
                kinds = rest.get("type")
                kinds = [kinds] if isinstance(kinds, str) else kinds
                if isinstance(kinds, list):
                    return {"enum": [one for one in value if any(_is(one, kind) for kind in kinds)]}
        return rest

    def values(self, values: list[Any]) -> None:
        """Note numbers that one engine would write otherwise than the other."""
        waiting = list(values)
        while waiting:
            value = waiting.pop()
            if isinstance(value, float) and (repr(value) != f"{value:.17g}" or "e" in repr(value)):
                self.differs.append(f"the constant {value}")
            waiting.extend(value if isinstance(value, list) else value.values() if isinstance(value, dict) else ())

    def typed(self, kind: str, rest: Json) -> Json:
        made = {**rest, "type": kind}
        match kind:
            case "object":
                self.object(made)
            case "array":
                if "items" in made:
                    made["items"] = self.schema(made["items"])
                    self.differs += ["items as a list"] if isinstance(made["items"], list) else []
                first = made.get("prefixItems")
                if isinstance(first, list):
                    made["prefixItems"] = [self.schema(one) for one in first]
                made.setdefault("items", not (first and self.closed))
            case "string" if "pattern" in made:
                made["pattern"] = self.pattern(made)
            case "number" if not _plain_bounds(made):
                self.differs.append("the bounds of a number")
        return made

    def object(self, made: Json) -> None:
        named = made.get("properties")
        if named is not None:
            made["properties"] = self.each(named)
        required = made.get("required")
        others = made.get("additionalProperties")
        rest_is_open = others is not False
        if others is None:
            others = not (self.closed and (named is not None or required))
        made["additionalProperties"] = others = self.schema(others)
        if isinstance(required, list) and rest_is_open and isinstance(named, dict | None):
            for name in required:
                if isinstance(name, str):
                    made.setdefault("properties", {}).setdefault(name, {} if isinstance(others, bool) else others)

    def pattern(self, made: Json) -> Any:
        given = made["pattern"]
        if not isinstance(given, str):
            return given
        bare = given.removeprefix("^")
        bare = bare.removesuffix("$") if not bare.endswith("\\$") else bare
        if not is_plain(bare) or ("|" in bare and bare != given):
            self.differs.append("pattern")
            return given
        if {"minLength", "maxLength"} & made.keys():
            self.differs.append("pattern beside a length")
        return f"^({ascii_digits(bare)})$" if "|" in bare else f"^{ascii_digits(bare)}$"


def _plain_bounds(made: Json) -> bool:
    """Whether llguidance takes every spelling within a number's bounds, as ``0.50``: not so for all bounds."""
    bounds = [made[name] for name in _TYPES["number"] if name in made]
    whole = all(_is_whole(bound) and bound >= 0 for bound in bounds)
    inclusive = not {"exclusiveMinimum", "exclusiveMaximum"} & made.keys()
    return not bounds or (whole and inclusive and "minimum" in made)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) or (isinstance(value, float) and value.is_integer())


def _is(value: Any, kind: Any) -> bool:
    wanted = _VALUES.get(kind) if isinstance(kind, str) else None
    return wanted is None or (isinstance(value, wanted) and (kind == "boolean" or not isinstance(value, bool)))


def explicit_schema(schema: Any, *, closed: bool) -> tuple[Any, str | None]:
    """Return `schema` made explicit, and what in it the engines still read differently: None if nothing.

    Args:
        schema: a whole JSON schema.
        closed: objects that name properties, and arrays that begin with given items, hold no others unless the
            schema says so.
    """
    writer = _Writer(closed)
    made = writer.schema(schema)
    if not writer.differs:
        writer.differs += (f"$ref {ref}" for ref in _refs(made) if not _resolves(made, ref))
    return made, writer.differs[0] if writer.differs else None


def _refs(node: Any) -> Iterable[Any]:
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            if "$ref" in node:
                yield node["$ref"]
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)


def _resolves(schema: Any, ref: Any) -> bool:
    if not isinstance(ref, str) or not ref.startswith("#"):
        return False
    node = schema
    for part in ref[1:].split("/")[1:]:
        node = node.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(node, dict) else None
    return isinstance(node, dict)
