from __future__ import annotations

import io
import json
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from pdd_cli import extras
from pdd_cli.generate.printer import Printer, outcome_line
from pdd_cli.generate.question import Question, read_prompt
from pdd_cli.generate.run import run_generate
from pdd_cli.kv_handover import cells_underway
from pdd_core.env import ServeSettings
from pdd_core.errors import CloudLost, ConfigurationError
from pdd_core.kv.geometry import KVGeometry
from pdd_core.timeline import ShownToken, Source
from pdd_llamacpp_adapter.cloud.cloud_monitor import Connection
from pdd_llamacpp_adapter.runtime import runtime
from pdd_llamacpp_adapter.server.prompts import prepare
from pdd_llamacpp_adapter.session.outcome import KVReport, Mode

CELLS = KVGeometry(
    num_layers=30, num_kv_heads=3, head_size=64, key_type="q8_0", value_type="q4_0", key_rotation=1,
    value_rotation=1, rope={"theta": 1e5, "rotary_dim": 64}, parts=[{"layers": (0, 30), "heads": (0, 3)}],
)  # fmt: skip


class FakeSession:
    rate, tail = 8.0, "!"

    def __init__(self, outcome, error=None) -> None:
        self.outcome, self._error = outcome, error

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        return None

    async def __aiter__(self):
        for token in self.outcome.timeline.tokens:
            yield token
        if self._error:
            raise self._error


class FakeRuntime:
    def __init__(self, session, connection=Connection.CONNECTED) -> None:
        self.cloud = SimpleNamespace(connection=connection, error="no connection", info=SimpleNamespace(kv=CELLS))
        self.session = lambda _: session

    @asynccontextmanager
    async def running(self, gguf, settings, *, model_name):
        self.settings, self.model_name = settings, model_name
        yield self


@pytest.fixture
def ask(monkeypatch, tmp_path):
    monkeypatch.setattr(extras, "find_spec", lambda _: True)

    async def prepared(chat, _):
        return SimpleNamespace(request=chat)

    monkeypatch.setattr(prepare, "prepare", prepared)

    def run(fake, *, terminal=False, **files):
        monkeypatch.setattr(runtime, "Runtime", fake)
        out, notes = io.StringIO(), io.StringIO()
        console = Console(file=out, force_terminal=terminal, color_system="standard" if terminal else None)
        settings = ServeSettings.load(None, {"gguf": str(tmp_path / "m.gguf"), "cloud_url": "http://host:1"})
        try:
            run_generate(
                Question(prompt="Why?"),
                settings,
                json_path=files.get("json"),
                plot=files.get("plot"),
                console=console,
                notes=Console(file=notes, width=500),
            )
        finally:
            out.flush()
            run.out, run.notes = out.getvalue(), notes.getvalue()
        return run

    return run


def test_the_answer_goes_out_as_plain_text_and_the_rest_to_the_notes(ask, outcome) -> None:
    done = ask(FakeRuntime(FakeSession(outcome(Mode.HANDOFF, cloud=2, device=2))))
    assert done.out == " w0 w1 w2 w3!\n"
    assert done.notes == (
        "4 tokens (2 cloud + 2 device) | first after 5.00 s | device took over at 15.10 s | "
        "longest gap 125 ms | stop\n"
    )


def test_on_a_terminal_the_engines_have_colours(ask, outcome) -> None:
    done = ask(FakeRuntime(FakeSession(outcome(Mode.HANDOFF, cloud=1, device=1))), terminal=True)
    assert "\x1b[94m w0" in done.out
    assert "\x1b[92m w1" in done.out


def test_a_cloud_that_is_down_is_said_and_no_error(ask, outcome) -> None:
    done = ask(FakeRuntime(FakeSession(outcome(Mode.DEVICE_ONLY, device=2)), Connection.DOWN))
    assert done.notes.startswith("The device answers alone: no connection\n")
    assert done.out == " w0 w1!\n"


def test_an_answer_that_breaks_off_leaves_what_there_was(ask, outcome, tmp_path) -> None:
    fake = FakeRuntime(FakeSession(outcome(Mode.CLOUD_ONLY, cloud=3, cloud_error="gone"), CloudLost("gone")))
    with pytest.raises(CloudLost):
        ask(fake, json=tmp_path / "a.json")
    assert ask.out == " w0 w1 w2\n"
    assert "cloud: gone" in ask.notes
    assert json.loads((tmp_path / "a.json").read_text())["cloud_tokens"] == 3


def test_json_and_picture_are_of_this_answer(ask, outcome, tmp_path) -> None:
    fake = FakeRuntime(FakeSession(outcome(Mode.HANDOFF, cloud=2, device=2)))
    ask(fake, json=tmp_path / "a.json", plot=tmp_path / "a.png")
    record = json.loads((tmp_path / "a.json").read_text())
    assert (record["schema"], record["model"], record["text"]) == (1, "m", " w0 w1 w2 w3")
    assert record["source"] == ["cloud", "cloud", "device", "device"]
    assert (tmp_path / "a.png").exists()
    assert (tmp_path / "a.svg").exists()
    assert fake.settings.cloud_url == "http://host:1/v1"


def test_a_picture_in_another_format_is_refused_before_anything_is_loaded(ask, outcome) -> None:
    with pytest.raises(ConfigurationError, match=r"not as \.pdf"):
        ask(FakeRuntime(FakeSession(outcome(Mode.HANDOFF, cloud=1))), plot=Path("a.pdf"))
    assert ask.out == ""


def test_a_prompt_comes_from_the_argument_a_file_or_both(tmp_path) -> None:
    file = tmp_path / "doc.txt"
    file.write_text("A document.\n", encoding="utf-8")
    assert read_prompt("Why?", None) == "Why?"
    assert read_prompt(None, file) == "A document."
    assert read_prompt("Why?", file) == "A document.\n\nWhy?"


@pytest.mark.parametrize("file", [None, Path("-")])
def test_a_prompt_comes_from_standard_input(monkeypatch, file) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("Wörter\n".encode())))
    assert read_prompt(None, file) == "Wörter"


@pytest.mark.parametrize("data", [b"  \n", b"\xff\xfe"])
def test_no_prompt_is_refused(monkeypatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    with pytest.raises(ConfigurationError, match=r"empty|UTF-8"):
        read_prompt(None, None)


def test_a_terminal_is_not_waited_for(monkeypatch) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdin", terminal)
    with pytest.raises(ConfigurationError, match="what is the question"):
        read_prompt(None, None)


def test_the_question_is_a_chat() -> None:
    chat = Question(prompt="Why?", system="Be short.", max_tokens=9, temperature=0.5, seed=3).chat()
    assert [message["role"] for message in chat.messages] == ["system", "user"]
    assert (chat.sampling.max_tokens, chat.sampling.temperature, chat.sampling.seed) == (9, 0.5, 3)


def test_the_answer_ends_with_one_line_break() -> None:
    out = io.StringIO()
    printer = Printer(Console(file=out))
    printer.show(ShownToken(0, 1, "yes\n", Source.DEVICE, 0.0, 0.0))
    printer.end()
    printer.end()
    assert out.getvalue() == "yes\n"


def test_an_answer_without_a_token_has_its_line_too(outcome) -> None:
    assert outcome_line(outcome(Mode.DEVICE_ONLY)) == "0 tokens | stop"


def test_cells_that_come_are_counted_and_summed_up(outcome) -> None:
    report = KVReport(cells=1209, prefilled=537, bytes=1209 * CELLS.cell_bytes, seconds=1.5)
    made = outcome(Mode.HANDOFF, cloud=2, device=2, kv=report)
    assert CELLS.cell_bytes == 9360
    assert cells_underway(made, CELLS.cell_bytes) == "cells 1,209/1,745"
    assert "KV cache 1,209/1,745 cells, 11.3 MB in 1.50 s, met at 536 |" in outcome_line(made)


@pytest.mark.parametrize(
    ("report", "says"),
    [
        (KVReport(reason="no_room"), "no KV cache: no_room |"),
        (KVReport(bytes=2_000_000, reason="invalid"), "no KV cache: invalid (2.0 MB) |"),
        (KVReport(), "no KV cache: too late |"),
    ],
)
def test_cells_that_did_not_come_are_said_so(outcome, report: KVReport, says: str) -> None:
    made = outcome(Mode.HANDOFF, cloud=2, kv=report)
    assert says in outcome_line(made)
    assert (cells_underway(made, CELLS.cell_bytes) == "") is (report.reason is not None)


def test_on_a_terminal_the_cells_are_below_the_answer_until_the_device_goes_on(ask, outcome) -> None:
    report = KVReport(bytes=640 * CELLS.cell_bytes, reason="too_late")
    done = ask(FakeRuntime(FakeSession(outcome(Mode.HANDOFF, cloud=1, device=2, kv=report))), terminal=True)
    assert "cells 640/1,745" in done.out
    assert done.out.rstrip().endswith("w2\x1b[0m!")
    assert "cells" not in done.out.rpartition("w1")[2]


def test_without_a_kv_cache_nothing_is_said_of_it(outcome) -> None:
    assert "KV" not in outcome_line(outcome(Mode.HANDOFF, cloud=2, device=2))
