"""A scheduler that does what vLLM's does with max_tokens and with its batch's places, and nothing else."""

import time
from collections import deque
from types import SimpleNamespace

from pdd_vllm_plugin.scheduler_mixin import BudgetMixin

ID = "a" * 32


class FinishReason(str):
    """vLLM's enum prints as its word."""


class Line(deque):
    def peek_request(self):
        return self[0]


class FakeScheduler:
    """Runs up to `capacity` requests; each step gives each of them `tokens` tokens, trimmed at max_tokens."""

    def __init__(self, additional_config=None, capacity=100, rank=0):
        self.vllm_config = SimpleNamespace(
            additional_config=additional_config or {},
            parallel_config=SimpleNamespace(
                data_parallel_index=rank, worker_cls="vllm.v1.worker.gpu_worker.Worker"
            ),
            scheduler_config=SimpleNamespace(max_num_seqs=capacity),
        )
        self.requests, self.running, self.waiting = {}, [], Line()
        self.kv_cache_manager = SimpleNamespace(usage=0.0)

    def get_request_counts(self):
        return len(self.running), len(self.waiting)

    def add_request(self, request):
        if request.request_id not in self.requests:
            self.requests[request.request_id] = request
            self.waiting.append(request)

    def schedule(self, tokens):
        new = []
        while self.waiting and len(self.running) < self.vllm_config.scheduler_config.max_num_seqs:
            new.append(self.waiting.popleft())
            self.running.append(new[-1])
        return SimpleNamespace(
            tokens=tokens, scheduled_new_reqs=[SimpleNamespace(req_id=one.request_id) for one in new]
        )

    def update_from_output(self, scheduler_output, model_runner_output):
        outputs = []
        for request in list(self.running):
            room = request.max_tokens - request.num_output_tokens
            new = min(scheduler_output.tokens, room)
            assert new >= 1  # vLLM has no way to end a request that gets no token
            request.num_output_tokens += new
            done = request.num_output_tokens >= request.max_tokens
            outputs.append(
                SimpleNamespace(
                    request_id=request.request_id, new_token_ids=[1] * new, stop_reason=None,
                    kv_transfer_params=None, finish_reason=FinishReason("length") if done else None,
                )
            )  # fmt: skip
            if done:
                del self.requests[request.request_id]
                self.running.remove(request)
        return {0: SimpleNamespace(outputs=outputs)}

    def step(self, tokens=1):
        return self.update_from_output(self.schedule(tokens), None)[0].outputs

    def finish_requests(self, request_ids, finished_status):
        return [self.requests.pop(i) for i in request_ids if i in self.requests]


class Scheduler(BudgetMixin, FakeScheduler):
    pass


class Params(SimpleNamespace):
    def clone(self):
        return Params(**vars(self))


def request(
    name="r", *, max_tokens=20, budget=None, opted_in=True, min_tokens=0, least=None, tenant=None, priority=0
):
    extra = {"pdd_handoff": ID} if opted_in else {}
    more = {"pdd_decode_budget": budget, "pdd_least_budget": least, "pdd_tenant": tenant}
    extra |= {field: value for field, value in more.items() if value is not None}
    return SimpleNamespace(
        request_id=name, max_tokens=max_tokens, num_prompt_tokens=5, num_output_tokens=0, priority=priority,
        num_output_placeholders=0, arrival_time=time.time(),
        sampling_params=Params(extra_args=extra or None, min_tokens=min_tokens),
    )  # fmt: skip


def told(tokens, set_by, *, engine=0, pressure=0.0, lowered=0, raised=0):
    return {
        "engine": engine, "tokens": tokens, "set_by": set_by, "pressure": pressure, "lowered": lowered,
        "raised": raised,
    }  # fmt: skip


def run(scheduler, tokens_per_step=1):
    """Step until nothing runs; returns (tokens, last output, reports)."""
    tokens, reports = 0, []
    while scheduler.requests:
        for output in scheduler.step(tokens_per_step):
            tokens += len(output.new_token_ids)
            if output.kv_transfer_params:
                reports.append(output.kv_transfer_params["pdd"])
            last = output
    return tokens, last, reports
