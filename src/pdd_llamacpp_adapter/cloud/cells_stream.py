"""The stream of a prompt's cells, read frame by frame."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

import anyio

from pdd_core.errors import CloudError, CloudLost, InvalidCells

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable

    import openai

    from pdd_core.kv.frames import Frame, FrameReader


async def read_cells(
    stream: openai.AsyncStream[object],
    frames: FrameReader,
    *,
    silence_s: float,
    on_bytes: Callable[[int], object],
) -> AsyncGenerator[Frame]:
    """Yield the frames up to the one that ends the stream; close the connection in any case, and at once.

    Holds at most one frame, and asks for no more bytes while the one that it has yielded is worked on.

    Args:
        stream: of openai's client, with nothing read yet.
        frames: knows what was asked for.
        silence_s: seconds without a byte after which the stream counts as lost.
        on_bytes: called with the size of all that comes, as it comes.

    Raises:
        CloudError: the stream broke off, or stalled.
        InvalidCells: no frames, others than were asked for, or a wrong checksum.
    """
    try:
        async with aclosing(stream.response.aiter_bytes()) as chunks:
            while True:
                chunk = await _next(chunks, silence_s)
                on_bytes(len(chunk))
                for frame in frames.feed(chunk):
                    if frame.last:
                        return
                    yield frame
    except (CloudError, InvalidCells):
        raise
    except Exception as error:  # the transport's own: their names differ between openai's versions
        raise CloudLost(f"the stream of cells broke off: {type(error).__name__}") from error
    finally:
        with anyio.CancelScope(shield=True):
            await stream.close()


async def _next(chunks: AsyncIterator[bytes], silence_s: float) -> bytes:
    with anyio.move_on_after(silence_s) as scope:
        chunk = await anext(chunks, None)
    if scope.cancelled_caught:
        raise CloudLost(f"no byte of the cells within {silence_s:g} s")
    if chunk is None:
        raise CloudLost("the stream of cells ended before its last frame")
    return chunk
