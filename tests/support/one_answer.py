"""The steps of one answer, without an engine's thread: what `Batcher` does, on the test's own."""

from pdd_llamacpp_adapter.engine.batcher import Ran
from pdd_llamacpp_adapter.engine.tasks import Generating


def each_step(sequence, steps, logits):
    """Yield each step of an answer behind what `sequence` holds."""
    made = []
    task = Generating(sequence, steps, made.append)
    goes_on = task.begin(logits)
    yield made.pop()
    while goes_on:
        sequence.context.decode([task.part])
        goes_on = task.processed(Ran(0.0, 0.0, 0))
        yield made.pop()
