"""One answer from beginning to end: load, connect, ask, show, and say what became of it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio

from pdd_cli.cache import published
from pdd_cli.demo.record import answer_record
from pdd_cli.demo_model import DEMO_NAME, device_gguf
from pdd_cli.extras import require
from pdd_cli.generate.printer import Printer, outcome_line
from pdd_cli.kv_handover import cells_underway
from pdd_cli.plots.style import check_picture
from pdd_cli.plots.timeline import PlottedAnswer, draw_timeline
from pdd_cli.progress import ConsoleProgress
from pdd_cli.urls import openai_base_url
from pdd_core.kv.geometry import KVGeometry
from pdd_core.timeline import Source

if TYPE_CHECKING:
    from rich.console import Console

    from pdd_cli.generate.question import Question
    from pdd_core.env import ServeSettings
    from pdd_llamacpp_adapter.runtime.runtime import Runtime
    from pdd_llamacpp_adapter.session.answer_session import AnswerSession
    from pdd_llamacpp_adapter.session.outcome import Outcome

SCHEMA = 1
"""Of the JSON file."""
_CONNECTING_POLL_S = 0.02


def run_generate(
    question: Question,
    settings: ServeSettings,
    *,
    json_path: Path | None,
    plot: Path | None,
    console: Console,
    notes: Console,
) -> None:
    """Answer `question`: the answer goes to `console`, everything else to `notes`.

    Ctrl-C ends the answer where it is; its outcome, JSON and picture are of what was shown.

    Raises:
        PDDError: something is not installed, a setting cannot work, or nobody could go on with the answer.
    """
    require("device", need="pdd-device generate")
    check_picture(plot)
    own = None if settings.gguf == "demo" else Path(settings.gguf)
    gguf = device_gguf(None, progress=ConsoleProgress(notes)) if own is None else own
    settings = settings.model_copy(
        update={"cloud_url": settings.cloud_url and openai_base_url(settings.cloud_url)}
    )
    # what matters of a lost cloud is said in our own words
    logging.getLogger("pdd_llamacpp_adapter").addHandler(logging.NullHandler())
    asking = _Asking(question, settings, console, notes)
    model = settings.model_name or (DEMO_NAME if own is None else gguf.stem.lower())
    try:
        anyio.run(asking.run, gguf, model)
    finally:
        asking.printer.end()
        if asking.session is not None:
            _report(asking.session, model, json_path=json_path, plot=plot, notes=notes)


class _Asking:
    def __init__(self, question: Question, settings: ServeSettings, console: Console, notes: Console) -> None:
        self.printer = Printer(console)
        self.session: AnswerSession | None = None
        """Set once the answer has begun."""
        self._question = question
        self._settings = settings
        self._notes = notes

    async def run(self, gguf: Path, model: str) -> None:
        """Load the model, and answer."""
        from pdd_llamacpp_adapter.runtime.runtime import Runtime
        from pdd_llamacpp_adapter.server.prompts.prepare import prepare

        async with Runtime.running(gguf, self._settings, model_name=model) as runtime:
            await self._connected(runtime)
            turn = await prepare(self._question.chat(), runtime)
            async with runtime.session(turn.request) as session:
                self.session = session
                self._watch_cells(session, runtime)
                async for token in session:
                    self.printer.show(token)
                self.printer.text(session.tail)

    def _watch_cells(self, session: AnswerSession, runtime: Runtime) -> None:
        if session.outcome.kv is None or runtime.cloud.info is None:
            return
        kv = runtime.cloud.info.kv
        if isinstance(kv, KVGeometry):
            self.printer.watch(lambda: cells_underway(session.outcome, kv.cell_bytes))

    async def _connected(self, runtime: Runtime) -> None:
        """Wait for the cloud's first word, and say so if it has none for us."""
        from pdd_llamacpp_adapter.cloud.cloud_monitor import Connection

        while runtime.cloud.connection is Connection.CONNECTING:  # noqa: ASYNC110 - the monitor has no bell for this
            await anyio.sleep(_CONNECTING_POLL_S)
        if runtime.cloud.connection is Connection.DOWN:
            why = f"The device answers alone: {runtime.cloud.error}"
            self._notes.print(why, style="yellow", highlight=False, markup=False, soft_wrap=True)


def _report(
    session: AnswerSession, model: str, *, json_path: Path | None, plot: Path | None, notes: Console
) -> None:
    outcome = session.outcome
    notes.print(outcome_line(outcome), style="dim", highlight=False, markup=False, soft_wrap=True)
    if json_path is not None:
        with published(json_path) as draft:
            text = json.dumps(record(outcome, model), indent=1, ensure_ascii=False)
            draft.write_text(f"{text}\n", encoding="utf-8")
    if plot is not None:
        draw_timeline([PlottedAnswer.of(outcome, title=_title(outcome), rate=session.rate)], plot)


def _title(outcome: Outcome) -> str:
    """Return what has happened, which need not be what was planned."""
    makers = [source for source in Source if outcome.timeline.count(source)]
    return f"{makers[0].capitalize()} alone" if len(makers) == 1 else "Handoff"


def record(outcome: Outcome, model: str) -> dict[str, Any]:
    """Return the answer and its figures, ready for JSON."""
    summary = outcome.summary()
    return {
        "schema": SCHEMA,
        "model": model,
        **answer_record(outcome),
        "refinement": summary["refinement"],
        "plan": summary["plan"],
        "decisions": summary["decisions"],
    }
