"""A cloud without a network, for the device's real engine."""

import anyio

from pdd_llamacpp_adapter.cloud.cloud_stream import CloudChunk, CloudEnd


class RecordedCloud:
    """A cloud that sends the first tokens of a known answer and hands off."""

    cancel_timeout = 1.0
    info = None

    def __init__(self, ids):
        self._ids = ids

    async def connected(self, vocab):
        class Info:
            features = ()

            class tokenizer:  # noqa: N801
                eos_ids = (2,)

        return Info

    async def stream(self, request, opt_in):
        for token in self._ids:
            await anyio.lowlevel.checkpoint()
            yield CloudChunk((token,), "", None)
        yield CloudChunk((), "", CloudEnd.BUDGET)

    async def cancel(self, handoff_id, *, used=None):
        return True
