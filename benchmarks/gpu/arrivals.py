"""Arrivals and lengths out of a request trace, at any rate."""

import csv
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request of a trace."""

    at: float
    """Seconds since the run began."""
    prompt: int
    """Tokens."""
    output: int
    """Tokens of the whole answer."""


def read_trace(path: Path, *, max_tokens: int) -> list[Arrival]:
    """Read Azure's columns TIMESTAMP, ContextTokens, GeneratedTokens; leave out what is longer than `max_tokens`.

    https://github.com/Azure/AzurePublicDataset, AzureLLMInferenceTrace_conv.csv.
    """
    with path.open(newline="") as file:
        rows = [
            (_seconds(row["TIMESTAMP"]), int(row["ContextTokens"]), int(row["GeneratedTokens"]))
            for row in csv.DictReader(file)
        ]
    return [
        Arrival(at - rows[0][0], prompt, output)
        for at, prompt, output in rows
        if prompt >= 1 and output >= 1 and prompt + output <= max_tokens
    ]


def _seconds(timestamp: str) -> float:
    # the files give seven decimals, and datetime takes six
    return datetime.fromisoformat(timestamp[:26]).timestamp()


def at_rates(trace: list[Arrival], phases: list[tuple[float, float]], *, skip: int = 0) -> list[Arrival]:
    """Return the trace from its request number `skip` on, faster or slower, so that it has the rates of `phases`.

    Args:
        trace: read by `read_trace`.
        phases: (requests per second, seconds), one after the other. Each has exactly that many requests in that
            time; between them the trace's own bursts and pauses remain.
        skip: requests of the trace to leave out.
    """
    arrivals: list[Arrival] = []
    begins = 0.0
    for rate, seconds in phases:
        count = round(rate * seconds)
        part = trace[skip : skip + count]
        if len(part) < count:
            raise ValueError(f"the trace has {len(part)} requests left, {count} are needed")
        span = part[-1].at - part[0].at
        arrivals += [
            Arrival(begins + seconds * (one.at - part[0].at) / span, one.prompt, one.output) for one in part
        ]
        skip += count
        begins += seconds
    return arrivals
