"""What kv_cloud.py asks of servers, and what it makes of the answers."""

import argparse
import json
import os
import random
import statistics
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, pairwise
from uuid import uuid4

import numpy as np

from pdd_core.kv.frames import FrameReader
from pdd_core.kv.geometry import KVGeometry
from pdd_core.kv.pieces import unpacked_part

KEY = "bench-key"
KINDS = ("kv", "opted_in", "plain", "off")
"""``off`` is a plain request to a server whose plugin hands over no KV caches."""
SETTLE_S = 2.0
"""Between two kinds: what is packed behind the last answers is no cost of the next."""
LIKE = 0.999
"""Least cosine similarity of one head's keys or values in one layer: bfloat16 sums differ in order."""
PATIENCE_S = 300
AGAIN = (429, 503)
_SHM = "/dev/shm"  # noqa: S108 - where the workers' shelves are


class Server:
    """Asks one server."""

    def __init__(self, root_url: str) -> None:
        self._root_url = root_url

    def ask(self, path: str, body: dict | None = None) -> bytes:
        """Return what GET, or POST of `body`, answers."""
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self._root_url}{path}", data, headers)  # noqa: S310 - our own server
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:  # noqa: S310
            return answer.read()

    def prefill(self, prompt: list[int], kind: str) -> str:
        """Have one token made of `prompt`; return the handoff id."""
        handoff_id = uuid4().hex
        xargs = {"pdd_handoff": handoff_id, "pdd_decode_budget": 1}
        body = {"model": "m", "prompt": prompt, "max_tokens": 2, "temperature": 0, "ignore_eos": True}
        if kind in ("kv", "opted_in"):
            body["vllm_xargs"] = {**xargs, **({"pdd_kv": 1} if kind == "kv" else {})}
        else:
            body["max_tokens"] = 1
        self.ask("/v1/completions", body)
        return handoff_id

    def geometry(self) -> KVGeometry:
        """Return what its cells look like."""
        kv = json.loads(self.ask("/v1/pdd/info"))["kv"]
        if kv["kind"] != "cells":
            raise SystemExit(f"this server hands over no KV caches: {kv['message']}")
        return KVGeometry.model_validate(kv)

    def cells(self, handoff_id: str) -> bytes | str:
        """Return a prompt's cells as they are streamed, or why there are none; ask again while they are packed."""
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                return self.ask(f"/v1/pdd/handoffs/{handoff_id}/kv")
            except urllib.error.HTTPError as error:
                with error:
                    why = f"HTTP {error.code}: {error.read(300).decode(errors='replace')}"
                if error.code not in AGAIN or time.monotonic() > until:
                    return why
            time.sleep(0.2)

    def metrics(self) -> dict[str, float]:
        """Return the counters about KV caches."""
        lines = [line for line in self.ask("/metrics").decode().splitlines() if line.startswith("pdd_kv")]
        counted = dict(line.rsplit(" ", 1) for line in lines)
        return {name: float(value) for name, value in counted.items() if "_bucket" not in name}


def prompts(seed: int, length: int, vocab: int):
    """Yield random prompts, none of which the prefix cache knows."""
    draw = random.Random(seed)
    while True:
        yield [draw.randrange(100, vocab) for _ in range(length)]


def rate(server: Server, kind: str, options: argparse.Namespace, seed: int) -> float:
    """Return prompts per second, `options.at_once` of them in flight all the time."""
    ended: list[float] = []
    begun = time.monotonic()
    until, counted_from = begun + options.seconds, begun + 0.2 * options.seconds

    def client(number: int) -> None:
        for prompt in prompts(seed * 1000 + number, options.prompt, options.vocab):
            if time.monotonic() >= until:
                return
            server.prefill(prompt, kind)
            ended.append(time.monotonic())

    with ThreadPoolExecutor(options.at_once) as pool:
        list(pool.map(client, range(options.at_once)))
    return sum(counted_from <= at < until for at in ended) / (until - counted_from)


def ratios(rates: dict[str, list[float]], of: str, over: str) -> dict[str, float] | None:
    """Return median, least and greatest of the pairs' ratios; None where a kind was not measured."""
    pairs = [a / b for a, b in zip(rates.get(of, []), rates.get(over, []), strict=False) if b]
    return {"median": statistics.median(pairs), "least": min(pairs), "greatest": max(pairs)} if pairs else None


def noise(rates: list[float]) -> float:
    """Return the median difference of neighbours of one kind, as a share."""
    return statistics.median(abs(b / a - 1) for a, b in pairwise(rates)) if rates[1:] else 0.0


def cost(servers: dict[str, Server], options: argparse.Namespace) -> dict:
    """Measure all kinds in turn; one more round, up to twice, while plain requests are unsteady."""
    kinds = [kind for kind in KINDS if kind != "off" or "off" in servers]
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}

    def measured(kind: str, seed: int) -> float:
        found = rate(servers["off" if kind == "off" else "on"], kind, options, seed)
        time.sleep(SETTLE_S)
        return found

    for kind in kinds:  # to warm up
        measured(kind, 10_000)
    number = 0
    while number < options.rounds or (number < options.rounds + 2 and noise(rates["plain"]) > 0.03):
        for kind in kinds if number % 2 == 0 else kinds[::-1]:
            rates[kind].append(measured(kind, number * 10 + kinds.index(kind)))
        print({kind: round(of_kind[-1], 3) for kind, of_kind in rates.items()}, flush=True)
        number += 1
    pairs = (("kv", "opted_in"), ("kv", "plain"), ("opted_in", "plain"), ("plain", "off"))
    compared = {f"{of} / {over}": ratios(rates, of, over) for of, over in pairs}
    return {"prompts_per_s": rates, "ratios": compared, "noise": noise(rates["plain"])}


class Taken:
    """Watches how much of /dev/shm is taken, beyond what was taken before. A context manager."""

    def __init__(self) -> None:
        self.most = 0
        self._before = _taken()
        self._done = threading.Event()
        self._watching = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self):
        self._watching.start()
        return self

    def __exit__(self, *_) -> None:
        self._done.set()
        self._watching.join()

    def _watch(self) -> None:
        while not self._done.wait(0.01):
            self.most = max(self.most, _taken() - self._before)


def _taken() -> int:
    stat = os.statvfs(_SHM)
    return (stat.f_blocks - stat.f_bfree) * stat.f_frsize


def shelf(server: Server, options: argparse.Namespace) -> dict:
    """Send requests at once whose cells do not fit, then fetch all."""
    cell_bytes = server.geometry().cell_bytes
    wanted = [
        prompt
        for _, prompt in zip(range(options.requests), prompts(77, options.prompt, options.vocab), strict=False)
    ]
    with Taken() as taken, ThreadPoolExecutor(options.requests) as pool:
        ids = list(pool.map(lambda prompt: server.prefill(prompt, "kv"), wanted))
        came = list(pool.map(server.cells, ids))
    whole = [one for one in came if isinstance(one, bytes)]
    held = sum(map(len, whole))
    return {
        "requests": options.requests, "asked_mb": options.requests * (options.prompt - 1) * cell_bytes / 1e6,
        "shelf_mb": options.shelf_bytes / 1e6, "held_mb": held / 1e6,
        "more_taken_mb": taken.most / 1e6,  # than before: an earlier check may have filled the shelf
        "bounded": max(held, taken.most) <= 1.05 * options.shelf_bytes + 2e6, "fetched": len(whole),
        "fetched_whole": sum(len(one) >= (options.prompt - 1) * cell_bytes for one in whole),
        "refused": sorted({one for one in came if isinstance(one, str)}),
    }  # fmt: skip


def unpacked(stream: bytes, geometry: KVGeometry, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Return keys and values of all layers and heads, float32 (layers, tokens, heads, head size)."""
    shape = (geometry.num_layers, tokens, geometry.num_kv_heads, geometry.head_size)
    keys, values = np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32)
    reader = FrameReader(geometry, 0, tokens)
    for frame in reader.feed(stream):
        if frame.last:
            break
        part, at = geometry.parts[frame.part], slice(frame.start, frame.start + frame.tokens)
        place = (slice(*part.layers), at, slice(*part.heads))
        keys[place], values[place] = unpacked_part(frame.payload, frame.tokens, frame.part, geometry)
    if not reader.ended or np.isnan(keys).any() or np.isnan(values).any():
        raise SystemExit("a stream of cells is not whole")
    return keys, values


def similarity(a: np.ndarray, b: np.ndarray) -> float:
    """Return the least cosine similarity of one head in one layer over all tokens."""
    products = [(x * y).sum(axis=(1, 3)) for x, y in ((a, b), (a, a), (b, b))]
    return float((products[0] / np.sqrt(products[1] * products[2])).min())


def joins(one: Server, joined: Server, options: argparse.Namespace) -> dict:
    """Compare cells of the same prompts."""
    least = {"keys": 1.0, "values": 1.0}
    layouts = {"one": one.geometry(), "joined": joined.geometry()}
    for prompt in islice(prompts(99, options.prompt, options.vocab), 4):
        found = []
        for server, geometry in ((one, layouts["one"]), (joined, layouts["joined"])):
            came = server.cells(server.prefill(prompt, "kv"))
            if isinstance(came, str):
                raise SystemExit(f"no cells: {came}")
            found.append(unpacked(came, geometry, len(prompt) - 1))
        for name, a, b in zip(least, *found, strict=True):
            least[name] = min(least[name], similarity(a, b))
    parts = {name: [part.model_dump() for part in geometry.parts] for name, geometry in layouts.items()}
    return {"least_similarity": least, "alike": min(least.values()) >= LIKE, "parts": parts}
