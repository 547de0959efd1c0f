"""Runs both captures, of attention and of cells, in a real vLLM on a tiny random model, case by case.

    python capture_cases.py FOLDER     # leaves FOLDER/cases.json

A process of its own: an engine inside this process is the one that can be driven step by step. The reference is
transformers' eager attention on the same weights, and its cache.
"""

import json
import os
import random
import sys
import time
import uuid
from pathlib import Path

BLOCK = 32
CHUNK = 64
BLOCKS = 40
WINDOW = 16
DEPTHS = [0.1, 0.3, 0.5]


def prepare(folder):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=128, intermediate_size=256, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=2048, tie_word_embeddings=False,
        initializer_range=0.25,  # so that attention is far from even
    )  # fmt: skip
    config._attn_implementation = "eager"
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(folder)
    return model


class World:
    def __init__(self, folder):
        self.model = prepare(folder)
        from pdd_vllm_plugin.compat import provide_vllm_metadata

        provide_vllm_metadata()
        from vllm import LLM

        self.llm = LLM(
            str(folder), dtype="float32", skip_tokenizer_init=True, enforce_eager=True, max_model_len=1024,
            max_num_batched_tokens=CHUNK, max_num_seqs=4, block_size=BLOCK, num_gpu_blocks_override=BLOCKS,
            enable_prefix_caching=True, scheduler_reserve_full_isl=False,
            scheduler_cls="pdd_vllm_plugin.scheduler.PDDAsyncScheduler",
            worker_cls="pdd_vllm_plugin.worker.PDDWorker",
            additional_config={"pdd": {
                "refine_window": WINDOW, "refine_layers": DEPTHS, "max_handoffs": 64,
                "kv": "on", "kv_key_type": "f16", "kv_value_type": "f16", "kv_ttl_s": 600,
            }},
        )  # fmt: skip
        self.shelf = self.llm.collective_rpc("pdd_kv_shelf")[0]
        self.random = random.Random(1)
        self.ids = {}
        self.preempted = {}
        self.steps = {}

    def prompt(self, length):
        return [self.random.randrange(1, 512) for _ in range(length)]

    def add(self, prompt, *, max_tokens=2, refine=True, budget=None):
        from vllm import SamplingParams

        handoff = uuid.uuid4().hex
        extra = {"pdd_handoff": handoff} if refine or budget else {}
        extra |= {"pdd_refine_ratio": 0.25, "pdd_kv": 1} if refine else {}
        extra |= {"pdd_decode_budget": budget} if budget else {}
        params = SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True, detokenize=False,
                                extra_args=extra or None)  # fmt: skip
        self.llm.llm_engine.add_request(handoff, {"prompt_token_ids": prompt}, params)
        self.ids[handoff] = prompt
        return handoff

    @property
    def scheduler(self):
        return self.llm.llm_engine.engine_core.engine_core.scheduler

    def run(self, until=None):
        """Step until all requests are done; return each one's last output."""
        outputs = {}
        while self.llm.llm_engine.has_unfinished_requests():
            for request in self.scheduler.requests.values():
                name = request.request_id[:32]
                before = self.preempted.setdefault(name, [])
                if request.num_preemptions > len(before):
                    before.append(request.num_output_tokens)
            running = [request.request_id[:32] for request in self.scheduler.running]
            outputs |= {out.request_id: out for out in self.llm.llm_engine.step()}
            for request in self.scheduler.requests.values():
                self._note(request.request_id[:32], request.num_computed_tokens, running)
            if until is not None and until():
                break
        return outputs

    def _note(self, name, computed, running):
        """Take note of how far a request's prompt is, and who else was at work."""
        prompt = self.ids.get(name, ())
        if 0 < computed < len(prompt):
            self.steps.setdefault(name, {"ends": [], "beside": 0})["ends"].append(computed)
        if name in self.ids:
            noted = self.steps.setdefault(name, {"ends": [], "beside": 0})
            noted["beside"] = max(noted["beside"], len(set(running) - {name}))

    def counts(self):
        return self.llm.collective_rpc("pdd_capture_counts")[0]

    def scores(self, handoff):
        from pdd_vllm_plugin.score_fetcher import combine

        return combine([rank[0] for rank in self.llm.collective_rpc("pdd_take_scores", args=([handoff],))], "max")

    def cells(self, handoff):
        """Wait for what the shelf has of a request: keys and values, or why not."""
        from pdd_core.kv.geometry import KVGeometry, NoKV
        from pdd_core.kv.pieces import pieces_between, unpacked_part
        from pdd_vllm_plugin.kv.shelf_file import ShelfFile

        geometry = KVGeometry.model_validate({**self.shelf["geometry"], "parts": [self.shelf["part"]]})
        file = ShelfFile(Path(self.shelf["folder"]), handoff)
        while (found := file.open(geometry, 0)) is None:
            time.sleep(0.005)
        if isinstance(found, NoKV):
            return found.reason
        with found:
            pieces = [(found.frame(piece)[1], piece.tokens) for piece in pieces_between(0, found.tokens)]
        return [unpacked_part(memoryview(payload), tokens, 0, geometry) for payload, tokens in reversed(pieces)]

    def cells_compared(self, handoff, past):
        """Compare a request's cells with transformers' cache: return how many there are and what differs most."""
        import numpy as np

        found = self.cells(handoff)
        if isinstance(found, str):
            return {"none": found}
        differ = []
        for side, name in enumerate(("keys", "values")):
            ours = np.concatenate([piece[side] for piece in found], axis=1)
            # (layers, tokens, heads, head size), less the last token
            theirs = np.stack([getattr(layer, name)[0].transpose(0, 1)[:-1].numpy() for layer in past.layers])
            assert ours.shape == theirs.shape
            differ.append(float((np.abs(ours - theirs) / np.abs(theirs).max()).max()))
        return {"tokens": ours.shape[1], "differ": max(differ)}

    def compared(self, handoff, output=None):
        """Fetch a request's scores and compare them with the reference."""
        import numpy as np
        import torch

        scores, prompt = self.scores(handoff), self.ids[handoff]
        with torch.no_grad():
            whole = self.model(torch.tensor([prompt]), output_attentions=True, use_cache=True)
        attentions = whole.attentions
        queries = min(WINDOW, len(prompt))
        eager = np.stack(
            [attentions[n][0, :, -queries:, :].mean(dim=1).amax(dim=0).numpy() for n in scores.layers]
        )
        return {
            "prompt": len(prompt),
            "layers": list(scores.layers),
            "window": scores.window,
            "difference": float(np.abs(eager - scores.values).max()),
            "largest": float(eager.max()),
            "cached": None if output is None else output.num_cached_tokens,
            "cells": self.cells_compared(handoff, whole.past_key_values),
            "preempted_at": self.preempted.get(handoff, []),
            **self.steps.get(handoff, {"ends": [], "beside": 0}),
        }

    def ask(self, *prompts, **options):
        handoffs = [self.add(prompt, **options) for prompt in prompts]
        outputs = self.run()
        return [self.compared(handoff, outputs[handoff]) for handoff in handoffs]


def cases(world):
    """Yield (name, results)."""
    first = world.prompt(50)
    yield "cold", world.ask(first)
    long = world.prompt(130)
    yield "chunked", world.ask(long)
    yield "exact repeat", world.ask(long)
    yield "shared prefix", world.ask([*long[:100], *world.prompt(60)])
    whole = world.prompt(4 * BLOCK)
    yield "whole blocks", world.ask(whole)
    yield "whole blocks again", world.ask(whole)
    yield "window across a chunk's end", world.ask(*(world.prompt(CHUNK + more) for more in (1, 3, 8, 15)))
    yield "shorter than the window", world.ask(world.prompt(5), world.prompt(1))
    yield "batched", world.ask(*(world.prompt(n) for n in (33, 90, 200, 64, 17, 120)))
    yield "budget 1", world.ask(world.prompt(70), world.prompt(20), budget=1, max_tokens=30)
    yield "beside plain requests", beside_plain(world)
    yield "preempted", preempted(world)


def beside_plain(world):
    for length in (40, 100):
        world.add(world.prompt(length), refine=False, max_tokens=20)
    return world.ask(world.prompt(75))


def preempted(world):
    """Two long requests leave too few blocks: the third is preempted, in its prefill or behind it."""
    results = []
    for length in (290, 250, 400, 200, 225):
        old = [world.add(world.prompt(450), max_tokens=60, refine=False) for _ in range(2)]
        handoff = world.add(world.prompt(length), max_tokens=40)
        outputs = world.run()
        assert set(old) <= outputs.keys()
        results.append(world.compared(handoff, outputs[handoff]))
    return results


def untouched(world):
    """A server with nothing but plain requests does nothing."""
    before = world.counts()
    world.add(world.prompt(100), refine=False)
    world.run()
    return {"before": before, "after": world.counts()}


def aborted(world):
    """An abort in the middle of a window leaves nothing, and disturbs nobody."""
    handoff = world.add(world.prompt(CHUNK + 8), max_tokens=4)
    world.run(until=lambda: world.counts()["partial"] > 0)
    partial = world.counts()
    world.llm.llm_engine.abort_request([handoff])
    results = world.ask(world.prompt(80))
    return {"partial": partial, "after": world.counts(), "next": results}


def residue(world, requests=1000):
    """Whether a thousand requests, fetched or not, leave something behind."""
    before = world.counts()
    for number in range(requests):
        handoff = world.add(world.prompt(8 + number % 30), max_tokens=1)
        if number % 4 == 3:
            world.run()
            if number % 8 == 3:
                world.scores(handoff)
    world.run()
    world.add(world.prompt(4), refine=False)
    world.run()  # a step in which the last ones' end is told
    return {"before": before, "after": world.counts()}


def main(folder):
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_PLUGINS": "pdd", "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1",
    }  # fmt: skip
    folder = Path(folder)
    world = World(folder / "model")
    results = {"aborted": aborted(world), "untouched": untouched(world)}
    results["cases"] = dict(cases(world))
    results["residue"] = residue(world)
    while (kept := world.llm.collective_rpc("pdd_kv_counts")[0])["waiting"]:
        time.sleep(0.01)
    results["kept"] = kept
    (folder / "cases.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main(sys.argv[1])
