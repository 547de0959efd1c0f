"""Offline throughput: plain vLLM against vLLM with the plugin, idle and with decode budgets.

Two engines with random weights take turns on one GPU: plain vLLM, and vLLM with the plugin's scheduler and worker.
Each shape of prompts and answers is measured on both, one right after the other, in changing order:

* plain vLLM: whole answers, and answers that `max_tokens` ends after N tokens;
* the plugin: whole answers of requests that do not opt in, and budgets of N tokens of requests that do.

    python benchmarks/gpu/offline.py --json offline.json [--seconds-budget 540] [--shapes 128/1024,1024/512:921]

The first measurement of an engine is to warm it up, and is dropped. One whose two halves differ by more than 5 %
is repeated, up to twice. What was never steady is named in the summary.

The JSON is written after each measurement, so that whatever ends the run loses nothing; PNG and SVG at the end,
where matplotlib is installed, or later with `plots.py`. What does not fit into the time is left out and listed.
"""

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from engine_process import EngineEnded, EngineFailed, EngineProcess, EngineSettings
from llama_shape import SHAPES
from load import Cell
from offline_record import Record, is_steady, planned, summary, table
from plots import draw_if_possible
from turns import Turns

WORKLOADS = "128/1024,256/2048,1024/512:921,1155/211,512/512,2048/512"
"""prompt/answer[:how much of the prompt is shared]; what matters most comes first."""
BUDGETS = (1, 8, 16, 64)
TRIES = 3
"""How often a cell is measured in one round, as long as it is unsteady."""


def shape(text: str) -> Cell:
    """Read ``prompt/answer[:shared]``."""
    lengths, _, shared = text.partition(":")
    prompt, _, output = lengths.partition("/")
    return Cell(prompt=int(prompt), output=int(output), shared=int(shared or 0))


def cells(whole: Cell, number: int) -> dict[str, list[Cell]]:
    """Return what each engine measures of a shape in round `number`: the essential, the rest, then repetitions."""
    by_plan = list(planned(whole).values())
    essential = {1, by_plan[0], 16}
    match number:
        case 0:
            caps, budgets = essential, {*by_plan, *BUDGETS}
        case 1:
            caps, budgets = {*by_plan, *BUDGETS} - essential, essential
        case _:
            caps = budgets = essential

    def ends(end: str, numbers: set[int]) -> list[Cell]:
        return [replace(whole, end=end, tokens=n) for n in sorted(numbers) if n < whole.output]

    return {"plain": [whole, *ends("cap", caps)], "plugin": [whole, *ends("budget", budgets)]}


class Plan:
    """Goes through rounds and shapes as long as there is time."""

    def __init__(self, turns: Turns, record: Record, options: argparse.Namespace, deadline: float) -> None:
        self._turns = turns
        self._record = record
        self._options = options
        self._deadline = deadline
        self._took: dict[tuple[int, ...], float] = {}
        self._warm: set[EngineProcess] = set()

    def run(self) -> None:
        """Return when all rounds are done, or the time is up."""
        wholes = [shape(text) for text in self._options.shapes.split(",")]
        if self._turns.way == "sequential":
            self._one_after_the_other([cells(whole, 0) for whole in wholes])
            return
        for number in range(self._options.rounds):
            for whole in wholes:
                wanted = cells(whole, number)
                # Who is at work begins: fewer turns, and the order changes from shape to shape, so that a drift of
                # the machine favours neither.
                for engine in sorted(wanted, key=lambda name: name != self._turns.at_work):
                    self._measure(engine, wanted[engine], self._deadline)

    def _one_after_the_other(self, wanted: list[dict[str, list[Cell]]]) -> None:
        # the plugin's engine has to be loaded, and measures more
        until = time.monotonic() + 0.42 * (self._deadline - time.monotonic())
        for engine, deadline in (("plain", until), ("plugin", self._deadline)):
            self._measure(engine, [cell for of_shape in wanted for cell in of_shape[engine]], deadline)

    def _measure(self, engine: str, wanted: list[Cell], deadline: float) -> None:
        for cell in wanted:
            for tried in range(TRIES):
                if time.monotonic() + self._guess(cell) >= deadline:
                    if not tried:
                        self._record.left_out.append(f"{engine}: {cell.name}, {cell.end} {cell.tokens}")
                    break
                if self._once(engine, cell):
                    break

    def _once(self, engine: str, cell: Cell) -> bool:
        """Measure. Returns whether nothing is to be gained by another time."""
        process = self._turns.to(engine)
        seconds = self._options.full_seconds if cell.end == "full" else self._options.seconds
        begun = time.monotonic()
        try:
            if process not in self._warm:
                self._record.add(engine, cell, process.measure(cell, seconds), warm_up=True)
                self._warm.add(process)
                begun = time.monotonic()
            figures = process.measure(cell, seconds)
        except EngineEnded:
            raise
        except EngineFailed as error:
            self._record.failed(str(error))
            return True
        self._record.add(engine, cell, figures)
        self._took[_size(cell)] = time.monotonic() - begun
        return is_steady(figures)

    def _guess(self, cell: Cell) -> float:
        known = self._took.get(_size(cell))
        if known is not None:
            return 1.1 * known
        return self._options.full_seconds + 16 if cell.end == "full" else self._options.seconds + 3


def _size(cell: Cell) -> tuple[int, ...]:
    return (cell.prompt, cell.shared, cell.generated)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("offline.json"))
    parser.add_argument("--shapes", default=WORKLOADS, help="prompt/answer[:shared], separated by commas")
    parser.add_argument("--rounds", type=int, default=4, help="at most; the time decides")
    parser.add_argument("--seconds", type=float, default=2.5, help="of a measurement with a cap or budget")
    parser.add_argument("--full-seconds", type=float, default=5.0, help="of a measurement of whole answers")
    parser.add_argument("--seconds-budget", type=float, default=540.0, help="for everything, loading included")
    parser.add_argument("--turns", choices=("sleep", "together", "sequential"), default="sleep")
    parser.add_argument("--model-shape", default="llama-8b", choices=tuple(SHAPES))
    parser.add_argument("--max-num-seqs", type=int, default=1024)
    parser.add_argument("--max-num-batched-tokens", type=int, default=4096)
    parser.add_argument("--max-model-len", type=int, default=4096)
    parser.add_argument("--gpu-memory-utilization", type=float, default=0.85)
    parser.add_argument("--cpu", action="store_true", help="vLLM's CPU build")
    options = parser.parse_args()
    deadline = time.monotonic() + options.seconds_budget
    with tempfile.TemporaryDirectory() as folder:
        record = run(options, Path(folder), deadline)
    draw_if_possible(options.json)
    sys.exit(bool(record.failures))


def run(options: argparse.Namespace, folder: Path, deadline: float) -> Record:
    """Measure; an engine that ends early ends the run, and is noted."""
    settings = EngineSettings(
        folder=folder,
        shape=options.model_shape,
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=options.max_num_batched_tokens,
        max_model_len=options.max_model_len,
        gpu_memory_utilization=options.gpu_memory_utilization * (0.5 if options.turns == "together" else 1),
        sleeps=options.turns == "sleep",
        on_cpu=options.cpu,
    )
    record = Record(options.json, options)
    engines = {"plain": settings, "plugin": replace(settings, plugin=True)}
    turns = Turns({name: EngineProcess(name, one) for name, one in engines.items()}, options.turns)
    try:
        turns.start()
        record.head |= {"turns": turns.way, "engines": turns.facts}
        Plan(turns, record, options, deadline).run()
    except EngineFailed as error:
        record.failed(str(error))
    finally:
        record.head |= {"turns": turns.way, "engines": turns.facts}
        record.write()
        print(table(summary(record.measured)))
        print(f"left out for want of time: {len(record.left_out)}; figures: {options.json}", flush=True)
        turns.stop()
    return record


if __name__ == "__main__":
    main()
