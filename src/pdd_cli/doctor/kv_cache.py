"""Can cloud and device hand over a prompt's KV cache, and how fast does it come?"""

from __future__ import annotations

import time
from contextlib import aclosing
from typing import TYPE_CHECKING
from uuid import uuid4

from pdd_cli.doctor.findings import ok, warn
from pdd_core.errors import CloudError, InvalidCells, named
from pdd_core.kv.geometry import PIECE_TOKENS, KVGeometry
from pdd_core.optin import OptIn

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from pdd_cli.doctor.findings import Finding
    from pdd_core.handoff import CloudInfo
    from pdd_llamacpp_adapter import CloudClient, DeviceEngine

LINK_BYTES = 4_000_000
"""About how many bytes of cells the link is measured with: no more is spent on a metered one."""
_MOST_TOKENS = 1024
_WHOLE = 2000
_CHECK, _LINK = "KV cache", "link"
_OTHER = "use a GGUF of the model that the cloud serves; handoffs without the KV cache work as they are"


async def kv_cache(client: CloudClient, info: CloudInfo, engine: DeviceEngine | None) -> AsyncIterator[Finding]:
    """Check a connected cloud, and `engine` if there is one. Measures the link where the cloud gives cells."""
    match info.kv:
        case KVGeometry() as geometry:
            yield _device(geometry, engine)
            yield await _link(client, info, geometry)
        case None:
            yield ok(
                _CHECK, "the plugin in the cloud does not know how to hand it over: the device reads the prompt"
            )
        case none:
            yield ok(_CHECK, f"the cloud does not hand it over, so the device reads the prompt: {none.message}")


def _device(geometry: KVGeometry, engine: DeviceEngine | None) -> Finding:
    cells = (
        f"{geometry.num_layers} layers, {geometry.num_kv_heads} heads of {geometry.head_size}, keys "
        f"{geometry.key_type}, values {geometry.value_type}: {geometry.cell_bytes:,} bytes a token"
    )
    if engine is None:
        return ok(_CHECK, f"the cloud hands it over ({cells}); --gguf says whether the device takes it")
    if (difference := engine.kv.differs_from(geometry)) is not None:
        return warn(_CHECK, f"the device cannot take it from this cloud: {difference}", _OTHER)
    return ok(_CHECK, f"the cloud hands it over, and the device takes it ({cells})")


async def _link(client: CloudClient, info: CloudInfo, geometry: KVGeometry) -> Finding:
    """Fetch the cells of a short prompt, and say how fast they came."""
    wanted = max(PIECE_TOKENS, LINK_BYTES // geometry.cell_bytes)
    tokens = min(wanted, _MOST_TOKENS, info.max_model_len - 2)
    came: list[tuple[float, int]] = []
    try:
        await _fetch(client, info, geometry, tokens, came)
    except (CloudError, InvalidCells) as error:
        return warn(_LINK, f"how fast it is is not known: {named(error)}", "see the log of vLLM")
    return ok(_LINK, link_found(came, geometry))


async def _fetch(
    client: CloudClient, info: CloudInfo, geometry: KVGeometry, tokens: int, came: list[tuple[float, int]]
) -> None:
    from pdd_llamacpp_adapter.request import AnswerRequest

    opt_in = OptIn(uuid4().hex, 1, kv=True)
    prompt = [1 + number % (info.tokenizer.size - 1) for number in range(tokens)]
    request = AnswerRequest(prompt_token_ids=prompt, max_tokens=1, decode_budget=1, kv=True, session=uuid4().hex)
    try:
        async with aclosing(client.stream(request, opt_in)) as chunks:
            async for _ in chunks:
                pass
        cells = client.cells(
            opt_in.handoff_id, 0, tokens - 1, geometry, on_bytes=lambda size: came.append((time.monotonic(), size))
        )
        async with aclosing(cells) as frames:
            async for _ in frames:
                pass
    finally:
        await client.cancel(opt_in.handoff_id)


def link_found(came: list[tuple[float, int]], geometry: KVGeometry) -> str:
    """Say how fast cells came: what followed the first bytes, over the time that it took.

    Args:
        came: when how many bytes came, in seconds.
        geometry: of the cells.
    """
    total, rest = sum(size for _, size in came), sum(size for _, size in came[1:])
    seconds = came[-1][0] - came[0][0] if came else 0.0
    if not rest or seconds <= 0:
        return f"too fast, or too few cells, to tell its speed by ({total:,} bytes)"
    speed = rest / seconds
    whole = _WHOLE * geometry.cell_bytes
    return (
        f"cells come at {8e-6 * speed:,.0f} Mbit/s ({total / 1e6:.1f} MB in {seconds:.2f} s): those of a prompt "
        f"of {_WHOLE:,} tokens, {whole / 1e6:.0f} MB, take {whole / speed:.1f} s"
    )
