"""The simulator's reference: the same scheduler, each step of each sequence by itself, without leaps or sums."""

from dataclasses import dataclass, field

from pdd_lab.simulator.kv_cache import KVCache


@dataclass(eq=False)
class Request:
    index: int
    prompt: int
    output: int
    hashes: tuple
    computed: int = 0
    made: int = 0
    blocks: int = 0  # of its own
    cached_blocks: int = 0
    held: list = field(default_factory=list)
    published: int = 0
    todo: int = 0  # what its prefill has to compute, since its last admission
    begun: bool = False

    @property
    def total(self):
        return self.prompt + self.made


def serve(load, cloud):
    """Return first token times, finish times, and the number of preemptions."""
    size = cloud.block_size
    kv = KVCache(cloud.kv_tokens // size, size)
    waiting, running, now, preemptions = [], [], 0.0, 0
    first, finish = [None] * len(load), [None] * len(load)
    arrivals = list(enumerate(load.rows()))

    def free(request):
        kv.release(request.held, request.blocks)
        request.held, request.blocks, request.cached_blocks = [], 0, 0
        running.remove(request)

    def grow(request, computed):
        """Blocks for so many tokens; False if there are not enough."""
        need = -(-computed // size) - request.cached_blocks - request.blocks
        if need > kv.available:
            return False
        kv.take(need)
        request.blocks += need
        return True

    while arrivals or waiting or running:
        while arrivals and arrivals[0][1][0] <= now:
            index, (_, prompt, output, hashes) = arrivals.pop(0)
            if prompt + output <= kv.total * size:
                waiting.append(Request(index, prompt, output, hashes))
        if not waiting and not running:
            if arrivals:
                now = max(now, arrivals[0][1][0])
            continue
        budget, scheduled, evicted = cloud.max_num_batched_tokens, [], False
        seconds = 0.0
        for request in tuple(running):
            if request not in running:
                continue
            tokens = min(request.total - request.computed, budget)
            if tokens == 0:
                continue
            while request in running and not grow(request, request.computed + tokens):
                victim, evicted = running[-1], True
                preemptions += 1
                free(victim)
                victim.computed = victim.published = 0
                waiting.insert(0, victim)
            if request in running:
                scheduled.append((request, tokens))
                budget -= tokens
                publish(kv, load, request, request.computed + tokens)  # findable as soon as it is scheduled
        while not evicted and waiting and budget and len(running) < cloud.max_num_seqs:
            request = waiting[0]
            count, blocks = kv.found(request.hashes)
            blocks = min(blocks, (request.total - 1) // size)
            tokens = min(request.total - blocks * size, budget)
            if kv.idle_blocks(request.hashes[:count]) + -(-request.total // size) - blocks > kv.available:
                break
            kv.hold(request.hashes[:count])
            request.held, request.published = list(request.hashes[:count]), count
            request.cached_blocks, request.computed = blocks, blocks * size
            assert grow(request, request.computed + tokens)
            request.todo = request.total
            running.append(waiting.pop(0))
            scheduled.append((request, tokens))
            budget -= tokens
            if not request.begun:
                seconds += cloud.per_request_s
            request.begun = True
            publish(kv, load, request, request.computed + tokens)
        if not scheduled:
            continue
        assert len(running) <= cloud.max_num_seqs
        seconds += cloud.base_s
        for request, tokens in scheduled:
            if request.computed >= request.todo:
                seconds += cloud.per_sequence_s + cloud.per_context_token_s * (request.computed + 1)
            else:
                seconds += cloud.per_prefill_token_s * tokens
                for position in range(request.computed, request.computed + tokens):
                    seconds += cloud.per_attended_token_s * (position + 1)
        now += seconds
        for request, tokens in scheduled:
            request.computed += tokens
            if request.computed == request.total:
                request.made += 1
                if request.made == 1:
                    first[request.index] = now
                if request.made == request.output:
                    finish[request.index] = now
                    free(request)
    return first, finish, preemptions


def publish(kv, load, request, computed):
    size = kv.block_size
    while request.published < len(request.hashes):
        begin = request.published * load.block_tokens
        end = min(begin + load.block_tokens, request.prompt)
        blocks = end // size - begin // size
        if end > computed or not blocks:
            return
        if kv.publish(request.hashes[request.published], blocks):
            request.held.append(request.hashes[request.published])
            request.cached_blocks += blocks
            request.blocks -= blocks
        request.published += 1
