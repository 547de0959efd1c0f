"""Is a router between here and the cloud, what does it take away, and how will a device ask nevertheless?"""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING
from uuid import uuid4

from pdd_cli.doctor.findings import ok, warn
from pdd_core.errors import CloudError, CloudRefused, named
from pdd_core.handoff import BY_POST, INLINE_UPDATES, HandoffState, VocabularyPiece
from pdd_core.optin import OptIn
from pdd_core.state_request import StateRequest, Verb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable

    from pdd_cli.doctor.findings import Finding
    from pdd_core.handoff import CloudInfo
    from pdd_llamacpp_adapter.cloud.cloud_client import CloudClient

READS = 8
"""How often one state is read: replicas that take turns show at the second."""
_INFO = StateRequest(Verb.INFO)
_SECOND_TOKEN = StateRequest(Verb.VOCABULARY, start=1)
_UPDATE = "update pdd-device in the cloud"
_KEEP = (
    "have the router keep a conversation on one replica (vllm-router: --policy consistent_hash), by the header "
    "that `pdd-device serve --session-header` names"
)


async def router(
    base_url: str, client: CloudClient, info: CloudInfo, *, api_key: str | None, header: str
) -> AsyncIterator[Finding]:
    """Check what a connected cloud's router lets through. Makes one token there.

    `header` is the one that names a conversation; empty for none.
    """
    try:
        lost = [sign async for sign in _lost(client)]
        signs = list(lost)
        states = [finding async for finding in _replicas(base_url, client, api_key, header, signs)]
        ways = await _ways(client, info, lost=bool(lost))
    except CloudError as error:
        yield warn("router", f"what it lets through is not known: {named(error)}", "see the log of vLLM")
        return
    what = f"one is between: {'; '.join(signs)}" if signs else "no sign of one that takes anything away"
    yield ok("router", what)
    for finding in [*states, *ways]:
        yield finding


async def _lost(client: CloudClient) -> AsyncIterator[str]:
    """Say what does not reach the routes under ``/v1/pdd``."""
    refused = await _refusal(client.route.by_route(_INFO))
    if refused is None:
        if not await client.route.keeps_query():
            yield "query strings are lost under /v1/pdd"
    elif refused.status in (401, 403):
        yield f"GET /v1/pdd/info loses the key (HTTP {refused.status}), so headers are lost under /v1/pdd"
    else:
        why = str(refused) if refused.status is None else f"HTTP {refused.status}"
        yield f"GET /v1/pdd/info does not get through ({why})"


async def _replicas(
    base_url: str, client: CloudClient, api_key: str | None, header: str, signs: list[str]
) -> AsyncIterator[Finding]:
    """Make one token, and see whether its state is found each time, in its conversation and in others."""
    from pdd_llamacpp_adapter.cloud.cloud_client import CloudClient
    from pdd_llamacpp_adapter.request import AnswerRequest

    opt_in = OptIn(uuid4().hex, 1)
    request = AnswerRequest(prompt_token_ids=[1], max_tokens=1, decode_budget=1, session=uuid4().hex)
    async with aclosing(client.stream(request, opt_in)) as chunks:
        async for _ in chunks:
            pass
    cookies = client.sessions.cookie_names(opt_in.handoff_id)
    if cookies:
        signs.append(f"cookies are set: {', '.join(cookies)}")
    kept = sum([await _found(client, opt_in.handoff_id) for _ in range(READS)])
    astray = 0
    async with CloudClient(base_url, api_key=api_key, session_header=header) as stranger:
        stranger.route.way = client.route.way
        for _ in range(READS):
            stranger.sessions.begin(uuid4().hex, opt_in.handoff_id)
            astray += await _found(stranger, opt_in.handoff_id)
    await _refusal(client.cancel(opt_in.handoff_id))
    by = " and ".join([*([header] if header else ()), *(["cookies"] if cookies else ())]) or "nothing"
    if astray < READS:
        signs.append("requests go to several replicas")
    seen = f"a state is found {kept} of {READS} times with {by}, {astray} of {READS} in other conversations"
    if kept < READS:
        yield warn("replicas", f"{seen}: cancels may miss the replica at work", _KEEP)
    elif astray < READS:
        yield ok("replicas", f"{seen}: several, and a conversation stays on one")
    else:
        yield ok("replicas", f"{seen}: one, or they share their states")


async def _found(client: CloudClient, handoff_id: str) -> bool:
    return await _refusal(client.route.ask(StateRequest(Verb.READ, handoff_id), HandoffState)) is None


async def _ways(client: CloudClient, info: CloudInfo, *, lost: bool) -> list[Finding]:
    """Say how a device will ask, and what of it does not work."""
    from pdd_llamacpp_adapter.cloud.cloud_route import Way

    found = []
    if BY_POST in info.features:
        by_post = await _refusal(client.route.by_post(_INFO)) or await _refusal(_piece(client))
        if by_post is not None:
            found.append(warn("by POST", f"questions by POST are refused: {by_post}", "see the router's log"))
    elif lost:
        what = "the plugin there knows no questions by POST, and what a router takes away matters"
        found.append(warn("by POST", what, _UPDATE))
    post = client.route.way is Way.POST
    ask = "POST /v1/completions" if post else "GET and DELETE /v1/pdd/handoffs/{id}"
    if INLINE_UPDATES in info.features:
        told = f"budget and refined prompt come inside the stream; {ask} only confirms a cancel"
        return [*found, ok("way", told)]
    return [*found, ok("way", f"budget and refined prompt are read, and cancels sent, by {ask}")]


async def _piece(client: CloudClient) -> None:
    from pdd_llamacpp_adapter.cloud.cloud_gate import parsed

    piece = parsed(await client.route.by_post(_SECOND_TOKEN), VocabularyPiece)
    if piece.start != _SECOND_TOKEN.start:
        raise CloudRefused("a POST with pdd_vocabulary is answered with another piece")


async def _refusal(call: Awaitable[object]) -> CloudRefused | None:
    """Return why a call was refused; None if it was not.

    Raises:
        CloudUnreachable: no connection.
    """
    try:
        await call
    except CloudRefused as error:
        return error
    return None
