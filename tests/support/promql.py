"""Which metrics and labels a PromQL expression names. Knows as much of the language as this project writes."""

import re

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_RANGE = re.compile(r"\[[^\]]*\]")
_BRACES = re.compile(r"([a-zA-Z_:][\w:]*)\s*\{([^}]*)\}")
_GROUPING = re.compile(r"\b(by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_NAME = re.compile(r"(?<![\w:.$])[a-zA-Z_:][\w:]*(?!\s*\()(?![\w:])")
_WORDS = {"and", "or", "unless", "bool", "offset", "by", "without", "on", "ignoring"}
OF_TARGETS = {"job", "instance"}
"""Labels that Prometheus gives to all that it reads."""


def names(expression):
    """Return the metrics' names, each with the labels that are matched, and the labels that are grouped by."""
    text = _RANGE.sub("", _STRING.sub('""', expression))
    grouped = {label.strip() for _, labels in _GROUPING.findall(text) for label in labels.split(",")} - {""}
    text = _GROUPING.sub(" ", text)
    metrics = {}
    for metric, matchers in _BRACES.findall(text):
        metrics.setdefault(metric, set()).update(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))
    text = re.sub(r"\{[^}]*\}", "", text)
    for name in _NAME.findall(text):
        if name not in _WORDS:
            metrics.setdefault(name, set())
    return metrics, grouped
