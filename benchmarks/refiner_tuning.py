"""Searches the attention refiner's settings on cases that no evaluation tests on: numbers from 1,000 on.

    python benchmarks/refiner_tuning.py read FOLDER --cases 24     # the model: attention of all layers, answers
    python benchmarks/refiner_tuning.py search FOLDER              # no model: which settings keep what is needed
    python benchmarks/refiner_tuning.py answer FOLDER SETTING ...  # the model: what it answers with some of them

`search` scores a setting by what the answer needs. Of a hidden number or a sentence, that is the tokens which hold
it, all of them; of an open answer, the share that is kept of the attention which its tokens pay to the unprotected
prompt. `answer` measures the real thing, for the few settings that are worth it. A SETTING is written as `search`
prints it: `window,heads,layers,pool,pooling,unit,lend,fuse`, layers as depths with `+` between; the window
`question` is the cloud's own.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from pdd_cli.demo_model import device_gguf
from pdd_core.refinement.capture import CAPTURE_DEPTHS, CAPTURE_HEADS, CAPTURE_WINDOW, choose_layers
from pdd_core.refinement.prompt import RefinePrompt
from pdd_core.refinement.protect import question_window
from pdd_core.refinement.refiners import AttentionRefiner, refiner
from pdd_core.refinement.scores import PromptScores, prompt_scores
from pdd_lab.evaluate.case_prompts import evidence_span
from pdd_lab.evaluate.cases import CaseSource
from pdd_lab.evaluate.documents import read_library
from pdd_lab.evaluate.evaluation_settings import BAD, EvalSettings
from pdd_lab.evaluate.tasks import MAKERS

FIRST = 1000
WINDOWS = ("question", 8, 16, 32, CAPTURE_WINDOW)
FUSES = (0, 1, 10, 60)
HEADS = ("max", "mean")
RATIOS = (0.1, 0.25, 0.5)
TASKS = ("agreement", "recall", "answers")


def opened(folder, threads=1):
    from pdd_lab.evaluate.eval_model import EvalModel
    from pdd_lab.evaluate.measure import Examiner
    from pdd_lab.evaluate.results import ResultStore

    settings = EvalSettings()
    reader = EvalModel(device_gguf(), n_ctx=settings.n_ctx, threads=threads)
    source = CaseSource(read_library(()), lambda text: len(reader.vocab.tokenize(text)), settings.length)
    layers = reader.full_layers()
    examiner = Examiner(reader, ResultStore(folder), window=CAPTURE_WINDOW, layers=layers, heads="max")
    return reader, source, examiner, layers


def right_cases(source, examiner, options):
    """Yield the cases of this process that the model gets right with the full prompt."""
    this, processes = map(int, options.share.split("/"))
    for number in range(FIRST, FIRST + options.cases):
        for task in TASKS:
            if number % processes != this or (case := MAKERS[task](source, number)) is None:
                continue
            record, prompt = examiner.full(case)
            if record["right"]:
                yield case, record, prompt


def read(options):
    reader, source, examiner, layers = opened(options.folder)
    begun = time.monotonic()
    for count, (case, record, prompt) in enumerate(right_cases(source, examiner, options), 1):
        target = options.folder / f"{case.task}-{case.number}.npz"
        if target.exists():
            continue
        attention = reader.read(prompt.token_ids, window=CAPTURE_WINDOW, layers=layers)
        asked = question_window(prompt.token_ids, prompt.pieces, prompt.special_ids, most=CAPTURE_WINDOW)
        rows = {
            f"{window}-{heads}": prompt_scores(
                attention, heads=heads, window=asked if window == "question" else window
            ).values.astype(np.float16)
            for window in WINDOWS
            for heads in HEADS
        }
        rows["layers"] = np.array([*layers, reader.n_layer])
        if not case.expected:
            behind = [*prompt.token_ids, *record["opening"], *record["answer"][:-1]]
            paid = reader.read(behind, window=len(record["answer"]), layers=layers)
            rows["paid"] = np.mean([layer.mean(axis=(0, 1))[: len(prompt)] for layer in paid.values()], axis=0)
        rows["need"] = needed(case, prompt)
        target.parent.mkdir(parents=True, exist_ok=True)
        text = {"pieces": prompt.pieces, "special": sorted(prompt.special_ids), "protected": prompt.protected}
        text |= {"ids": prompt.token_ids, "kind": case.kind}
        np.savez(target, text=np.array(json.dumps(text)), **rows)
        print(f"{count}: {case.task} {case.number}, {time.monotonic() - begun:.0f} s", flush=True)


def needed(case, prompt):
    """Return which tokens of the prompt hold the answer: bool, none for open questions."""
    mask = np.zeros(len(prompt), dtype=bool)
    if (place := evidence_span(case, prompt)) is not None:
        mask[slice(*place)] = True
    return mask


def loaded(folder):
    """Yield (kind, prompt, arrays) of what `read` has left."""
    for path in sorted(folder.glob("*-*.npz")):
        if path.stem.split("-")[0] in TASKS:
            with np.load(path) as held:
                arrays = {name: held[name] for name in held.files}
            text = json.loads(str(arrays.pop("text")))
            protected = tuple(map(tuple, text["protected"]))
            special = frozenset(text["special"])
            prompt = RefinePrompt(tuple(text["ids"]), tuple(text["pieces"]), special, protected)
            yield text["kind"], prompt, arrays


def scores_of(arrays, window, heads, depths):
    values = arrays[f"{window}-{heads}"]
    *usable, total = arrays["layers"].tolist()
    layers = choose_layers(depths, usable, total)
    chosen = [usable.index(layer) for layer in layers]
    return PromptScores(values[chosen].astype(np.float32), layers, 0, heads)


def quality(cases, setting):
    """Return, for each kind of case and ratio, the share of what is needed that a setting keeps."""
    window, heads, depths, pool, pooling, unit, lend, fuse = setting
    chosen = AttentionRefiner(pool=pool, pooling=pooling, unit=unit, lend=lend, fuse=fuse)
    shares: dict = {}
    for kind, prompt, arrays in cases:
        scores = scores_of(arrays, window, heads, depths)
        for ratio in RATIOS:
            kept = chosen.pdd_refine(scores, prompt, ratio)
            mask = np.zeros(len(prompt), dtype=bool)
            mask[kept] = True
            if kind == "open":
                paid = arrays["paid"].copy()
                paid[prompt.protected_indices()] = 0
                share = float(paid[mask].sum() / paid.sum())
            else:
                share = float(mask[arrays["need"]].all())
            shares.setdefault((kind, ratio), []).append(share)
    return {key: float(np.mean(values)) for key, values in shares.items()}


def single(quality_of):
    """One figure per setting: the mean over kinds and ratios."""
    return float(np.mean(list(quality_of.values())))


def written(setting):
    window, heads, depths, *rest = setting
    return ",".join([str(window), heads, "+".join(f"{depth:g}" for depth in depths), *map(str, rest)])


def read_setting(text):
    window, heads, depths, pool, pooling, unit, lend, fuse = text.split(",")
    layers = tuple(map(float, depths.split("+")))
    return window, heads, layers, int(pool), pooling, unit, lend == "True", int(fuse)


DEPTHS = [
    (0.4, 0.47, 0.53, 0.6), (0.2, 0.3, 0.4, 0.5), (0.5, 0.6, 0.7, 0.8), (0.3, 0.4, 0.5, 0.6, 0.7), (0.4,), (0.5,),
    (0.57,), (0.7,), (0.4, 0.5), (0.47, 0.57), (0.6, 0.74), (0.47, 0.57, 0.74), tuple(n / 10 for n in range(10)),
]  # fmt: skip
POOLS = [(1, "max"), (7, "max"), (15, "max"), (31, "max"), (7, "mean"), (15, "mean"), (31, "mean"), (63, "mean")]


def begin_search(folder):
    held.extend(loaded(folder))


def quality_here(setting):
    return quality(held, setting)


held: list = []
"""The cases of a process that searches."""


def search(options):
    count = sum(path.stem.split("-")[0] in TASKS for path in options.folder.glob("*-*.npz"))
    with ProcessPoolExecutor(options.jobs, initializer=begin_search, initargs=(options.folder,)) as pool:
        climb(pool, count, options)


def climb(pool, count, options):
    drawn = random.Random(0)
    tried: dict = {}

    def try_all(settings):
        fresh = [setting for setting in dict.fromkeys(settings) if setting not in tried]
        tried.update(zip(fresh, pool.map(quality_here, fresh), strict=True))

    begin = ("question", CAPTURE_HEADS, CAPTURE_DEPTHS, 7, "mean", "line", False, 60)
    try_all([begin])
    axes = [WINDOWS, HEADS, DEPTHS, list(POOLS), ["token", "word", "line"], [False, True], list(FUSES)]

    def with_axis(setting, axis, value):
        window, heads, depths, pool, pooling, unit, lend, fuse = setting
        parts = [window, heads, depths, (pool, pooling), unit, lend, fuse]
        parts[axis] = value
        return (*parts[:3], *parts[3], *parts[4:])

    starts = [begin]
    for _ in range(options.starts):
        chosen = [drawn.choice(list(axis)) for axis in axes]
        starts.append((*chosen[:3], *chosen[3], *chosen[4:]))
    for start in starts:  # climb along one axis after the other until nothing gets better
        at = start
        while True:
            around = [with_axis(at, number, value) for number, axis in enumerate(axes) for value in axis]
            try_all([at, *around])
            best = max(around, key=lambda setting: single(tried[setting]))
            if single(tried[best]) <= single(tried[at]) + 1e-9:
                break
            at = best
        print(f"from {written(start)} to {written(at)}: {single(tried[at]):.4f}", flush=True)
    ranked = sorted(tried, key=lambda setting: -single(tried[setting]))
    kinds = sorted({kind for kind, _ in tried[begin]})
    print(f"{count} cases, {len(tried)} settings; kinds {kinds}, each at ratios {RATIOS}")
    for setting in [*ranked[: options.show], begin]:
        row = "  ".join("/".join(f"{100 * tried[setting][kind, r]:.0f}" for r in RATIOS) for kind in kinds)
        print(f"{single(tried[setting]):.4f}  {row}  {written(setting)}")
    best = ranked[0]
    print("one setting changed at a time:")
    around = [with_axis(best, number, value) for number, axis in enumerate(axes) for value in axis]
    try_all(around)
    for number, axis in enumerate(axes):
        for value in axis:
            changed = with_axis(best, number, value)
            print(f"  {single(tried[changed]):.4f}  {written(changed)}")


def answer(options):
    """Measure settings, beside other refiners, the full prompt, and the one that the guard has to notice."""
    reader, source, examiner, _ = opened(options.folder)
    settings = {text: read_setting(text) for text in options.settings}
    totals: dict = {}
    for case, record, prompt in right_cases(source, examiner, options):
        path = options.folder / f"{case.task}-{case.number}.npz"
        if not path.exists():
            continue  # `read` has not come to it
        with np.load(path) as held:
            arrays = {name: held[name] for name in held.files}
        kept = {("full", 1.0): list(range(len(prompt))), BAD: refiner(BAD[0]).pdd_refine(None, prompt, BAD[1])}
        for ratio in options.ratios:
            for text, (window, heads, depths, pool, pooling, unit, lend, fuse) in settings.items():
                chosen = AttentionRefiner(pool=pool, pooling=pooling, unit=unit, lend=lend, fuse=fuse)
                kept[text, ratio] = chosen.pdd_refine(scores_of(arrays, window, heads, depths), prompt, ratio)
            for name in options.beside:
                kept[name, ratio] = refiner(name).pdd_refine(None, prompt, ratio)
        keys = examiner.outcomes(case, record, prompt, kept.values())
        for setting, key in zip(kept, keys, strict=True):
            outcome = record["outcomes"][key]
            totals.setdefault(setting, {}).setdefault(case.kind, []).append(outcome["score"])
            line = {
                "task": case.task,
                "number": case.number,
                "setting": setting,
                **outcome,
                "cloud": record["cloud"],
            }
            print(json.dumps(line), flush=True)
    reader.close()
    for (text, ratio), kinds in totals.items():
        means = {kind: (round(float(np.mean(scores)), 3), len(scores)) for kind, scores in kinds.items()}
        print(json.dumps({"setting": text, "ratio": ratio, "means": means}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("read", "search", "answer"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("settings", nargs="*")
    parser.add_argument("--cases", type=int, default=24, help="tried of each task")
    parser.add_argument("--share", default="0/1", help="NUMBER/PROCESSES: read a part, beside other processes")
    parser.add_argument("--jobs", type=int, default=1, help="processes of a search")
    parser.add_argument("--starts", type=int, default=4, help="random places to begin the search at")
    parser.add_argument("--show", type=int, default=12)
    parser.add_argument("--ratios", type=lambda text: [float(part) for part in text.split(",")], default=[0.25])
    parser.add_argument("--beside", type=lambda text: text.split(","), default=["lexical", "truncation", "random"])
    options = parser.parse_args()
    {"read": read, "search": search, "answer": answer}[options.what](options)


if __name__ == "__main__":
    main()
