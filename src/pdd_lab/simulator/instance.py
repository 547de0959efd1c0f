"""One vLLM instance: its scheduler, step by step where something changes, in one leap where nothing does.

Between two events (an arrival that can be admitted, the end of a sequence, a full KV cache) every decoding
sequence gains one token per step. A step then takes as long as the one before it plus the same increment, so the
time of K steps is the sum of an arithmetic series, and the sequences' ends wait in a heap, keyed by a common step
counter. The cost is that of the events, not of the tokens.
"""

from __future__ import annotations

import math
from collections import deque
from heapq import heappop, heappush
from typing import TYPE_CHECKING

from pdd_core.errors import ConfigurationError
from pdd_lab.simulator.kv_cache import KVCache
from pdd_lab.simulator.offered_load import Tally
from pdd_lab.simulator.sequence import Sequence
from pdd_lab.simulator.step_clock import StepClock

if TYPE_CHECKING:
    from pdd_core.planner.profiles import MeasuredCloud
    from pdd_lab.simulator.offered_load import Load, Served


def simulate(load: Load, cloud: MeasuredCloud) -> Served:
    """Serve `load` on one instance with this profile; its round trips are not counted.

    Raises:
        ConfigurationError: the profile has fewer `max_num_batched_tokens` than `max_num_seqs`.
    """
    return Instance(load, cloud).run()


class Instance:
    """The scheduler's state. vLLM's `Scheduler.schedule` is the model for the order in which things happen."""

    def __init__(self, load: Load, cloud: MeasuredCloud) -> None:
        if cloud.max_num_batched_tokens < cloud.max_num_seqs:
            raise ConfigurationError(
                f"max_num_batched_tokens ({cloud.max_num_batched_tokens}) must be at least max_num_seqs "
                f"({cloud.max_num_seqs})"
            )
        self.load, self.cloud = load, cloud
        self.kv = KVCache(cloud.kv_tokens // cloud.block_size, cloud.block_size)
        self.clock = StepClock(cloud)
        self.tally = Tally(len(load))
        self.waiting: deque[Sequence] = deque()
        self.running: dict[Sequence, None] = {}
        """In the order of admission; those that decode, and last the one whose prefill is not done, if any."""
        self.partial: Sequence | None = None
        self.ends: list[tuple[int, int, Sequence]] = []
        """A heap: step counter, a number that settles ties, sequence. Those of preempted ones are passed over."""
        self.residues = [0] * cloud.block_size
        """How many of the decoding sequences need a new block in which steps."""
        self.attended = 0.0
        """Pairs of a prefill token and one before it, or itself, in this step."""

    def run(self) -> Served:
        """Serve the whole load."""
        rows = enumerate(self.load.rows())
        most = self.kv.total * self.kv.block_size
        waiting, running = self.waiting, self.running
        seats, clock = self.cloud.max_num_seqs, self.clock
        upcoming = next(rows, None)
        while True:
            while upcoming is not None and upcoming[1][0] <= clock.now:
                index, (_, prompt, output, hashes) = upcoming
                if prompt + output > most:
                    self.tally.refuse(index)
                else:
                    waiting.append(Sequence(index, prompt, output, hashes))
                upcoming = next(rows, None)
            if not running and not waiting:
                if upcoming is None:
                    break
                clock.now = max(clock.now, upcoming[1][0])
                continue
            if self.partial is not None or (waiting and len(running) < seats):
                self._mixed_step()
            else:
                open_seats = len(running) < seats
                self._leap(upcoming[1][0] if open_seats and upcoming is not None else math.inf)
        return self.tally.served(clock)

    def _mixed_step(self) -> None:
        """Make one step in which a prompt may be prefilled; where none can be, leap to what changes that."""
        cloud, kv, clock, tally = self.cloud, self.kv, self.clock, self.tally
        decoding = len(self.running) - (self.partial is not None)
        preempted = tally.preempted
        if self.residues[clock.step % kv.block_size] > kv.available:
            self._decode_short_of_blocks()
            decoding = len(self.running) - (self.partial is not None)
        else:
            kv.take(self.residues[clock.step % kv.block_size])
        budget = cloud.max_num_batched_tokens - decoding
        done: list[Sequence] = []
        new = 0
        room = budget
        if self.partial is not None and not self.partial.extend(kv, room):
            self._preempt(self.partial)
        elif self.partial is not None:
            room -= self._advanced(done, room)
        if tally.preempted == preempted:
            while room and self.waiting and len(self.running) < cloud.max_num_seqs:
                sequence = self.waiting[0]
                if not sequence.admit(kv, room):
                    break
                self.waiting.popleft()
                if not sequence.begun:
                    new += 1
                    sequence.begun = True
                    tally.cached[sequence.index] = sequence.computed
                self.running[sequence] = None
                self.partial = sequence
                room -= self._advanced(done, room)
        prefilled = budget - room
        if not prefilled and not decoding:
            if tally.preempted == preempted:
                raise AssertionError("an idle instance cannot place a request that fits it")  # pragma: no cover
            return
        tally.note(len(self.running), decoding + prefilled, kv.in_use)
        tally.prefilled += prefilled
        tally.decoded += decoding
        clock.advance(
            1,
            decoding,
            cloud.per_prefill_token_s * prefilled
            + cloud.per_request_s * new
            + cloud.per_attended_token_s * self.attended,
        )
        self.attended = 0.0
        for sequence in done:
            self._begin_decode(sequence)
        self._end_those_done()
        unchanged = not prefilled and tally.preempted == preempted and len(self.running) == decoding
        if unchanged and not self._finds_too_much():
            self._leap(math.inf)  # the first in line waits for blocks, and only an end frees some

    def _finds_too_much(self) -> bool:
        """Whether the first in line finds more of its prefix than it can use: it may fit once that is lost."""
        if not self.waiting:
            return False
        sequence = self.waiting[0]
        _, found = self.kv.found(sequence.hashes)
        return found > (sequence.todo - 1) // self.kv.block_size

    def _advanced(self, done: list[Sequence], room: int) -> int:
        """Count the partial sequence's chunk as computed, and return its tokens."""
        sequence = self.partial
        assert sequence is not None  # noqa: S101 - for mypy
        chunk = min(room, sequence.todo - sequence.computed)
        self.attended += chunk * (sequence.computed + (chunk + 1) / 2)
        sequence.computed += chunk
        if sequence.hashes:
            sequence.publish(self.kv, self.load.block_tokens)
        if sequence.computed == sequence.todo:
            done.append(sequence)
            self.partial = None
        return chunk

    def _begin_decode(self, sequence: Sequence) -> None:
        """Let a sequence whose prefill is done, and which thereby made a token, go on."""
        clock, tally = self.clock, self.tally
        tally.decoded += 1
        made = sequence.todo - sequence.prompt + 1
        if made == 1:
            tally.first[sequence.index] = clock.now
        sequence.since = clock.step
        sequence.ends = clock.step + sequence.output - made
        sequence.residue = (clock.step - sequence.todo) % self.kv.block_size
        self.residues[sequence.residue] += 1
        clock.context += sequence.todo
        heappush(self.ends, (sequence.ends, tally.decoded, sequence))

    def _end_those_done(self) -> None:
        ends, step, running = self.ends, self.clock.step, self.running
        while ends and ends[0][0] <= step:
            at, _, sequence = heappop(ends)
            if sequence.ends == at and sequence in running:
                self.tally.finish[sequence.index] = self.clock.now
                self._leave(sequence)
                del running[sequence]

    def _leave(self, sequence: Sequence) -> None:
        """Take back the blocks of a running sequence."""
        tokens = sequence.tokens(self.clock.step)
        if sequence.since >= 0:
            self.clock.context -= tokens
            self.residues[sequence.residue] -= 1
        else:
            self.partial = None
        sequence.release(self.kv, tokens)

    def _preempt(self, sequence: Sequence) -> None:
        """Put a running sequence back to the front of the line; all it had is computed again."""
        self._leave(sequence)
        del self.running[sequence]
        sequence.restart(self.clock.step)
        self.waiting.appendleft(sequence)
        self.tally.preempted += 1

    def _decode_short_of_blocks(self) -> None:
        """Hand out the step's blocks one by one, in the order of admission, and preempt from the end."""
        kv, residue = self.kv, self.clock.step % self.kv.block_size
        served: list[Sequence] = []
        for sequence in list(self.running):
            if sequence not in self.running:
                break  # preempted, and so are all behind it
            if sequence.since < 0 or sequence.residue != residue:
                continue
            while sequence in self.running and not kv.available:
                self._preempt(next(reversed(self.running)))
            if sequence in self.running:
                kv.take(1)
                served.append(sequence)

    def _leap(self, until: float) -> None:
        """Decode until a sequence ends, the time `until` has come, or blocks run out."""
        ends, running, clock, tally = self.ends, self.running, self.clock, self.tally
        while ends[0][2].ends != ends[0][0] or ends[0][2] not in running:
            heappop(ends)
        decoding, kv = len(running), self.kv
        steps = clock.steps_before(until, decoding, ends[0][0] - clock.step)
        size = kv.block_size
        if decoding * (steps // size + 1) > kv.available:
            steps = max(1, min(steps, size * (kv.available // decoding)))
        if steps == 1 and self.residues[clock.step % size] > kv.available:
            self._decode_short_of_blocks()
            decoding = len(running)
            if not decoding:
                return
        else:
            cycles, rest = divmod(steps, size)
            at = clock.step % size
            turn = self.residues[at:] + self.residues[:at]
            kv.take(cycles * decoding + sum(turn[:rest]))
        tally.note(len(running), decoding, kv.in_use)
        tally.decoded += steps * decoding
        clock.advance(steps, decoding)
        self._end_those_done()
