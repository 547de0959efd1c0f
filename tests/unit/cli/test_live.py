from __future__ import annotations

import io

import pytest
from rich.console import Console

from pdd_cli.demo.live_display import LiveView
from pdd_core.timeline import ShownToken, Source


def tokens(*parts: tuple[str, Source]) -> list[ShownToken]:
    return [ShownToken(i, i, text, source, 0.0, 0.0) for i, (text, source) in enumerate(parts)]


def shown(console: Console, out: io.StringIO, *parts: tuple[str, Source]) -> str:
    with LiveView(console, "Handoff") as view:
        view.progress(5, 10, "prefill")
        for token in tokens(*parts):
            view.show(token)
    return out.getvalue()


@pytest.fixture
def plain():
    out = io.StringIO()
    return Console(file=out, width=40), out


def test_without_colours_the_seam_is_marked(plain) -> None:
    text = shown(*plain, ("Hello", Source.CLOUD), (" dear", Source.CLOUD), (" world", Source.DEVICE))
    assert "[cloud] Hello dear[device]  world" in text
    assert text.count("[device]") == 1


def test_every_word_of_a_long_answer_is_printed_once_and_in_order(plain) -> None:
    words = [f"word{index}" for index in range(100)]
    parts = [(f" {word}", Source.DEVICE) for word in words]
    text = shown(*plain, *parts)
    assert text.partition("[device]")[2].split() == words


def test_line_breaks_of_the_answer_are_kept(plain) -> None:
    text = shown(*plain, ("a:\n", Source.CLOUD), ("\n", Source.CLOUD), ("1. b", Source.CLOUD))
    assert "[cloud] a:\n\n1. b\n" in text


def test_the_wait_for_the_first_token_shows_the_devices_prefill(plain) -> None:
    assert "device: prefill 5 of 10 tokens" in shown(*plain)


def test_with_colours_the_two_engines_differ() -> None:
    out = io.StringIO()
    console = Console(file=out, width=40, force_terminal=True, color_system="standard")
    text = shown(console, out, ("cloudy", Source.CLOUD), ("device", Source.DEVICE))
    assert "\x1b[94mcloudy" in text
    assert "\x1b[92mdevice" in text
