"""The same for programs without an event loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio

from pdd_llamacpp_adapter.cloud.cloud_client import CloudClient
from pdd_llamacpp_adapter.session.answer_session import AnswerSession

if TYPE_CHECKING:
    from collections.abc import Callable

    from pdd_core.timeline import ShownToken
    from pdd_llamacpp_adapter.engine.device_engine import DeviceEngine
    from pdd_llamacpp_adapter.request import AnswerRequest
    from pdd_llamacpp_adapter.session.outcome import Outcome


def generate(
    request: AnswerRequest,
    *,
    engine: DeviceEngine | None = None,
    cloud_url: str | None = None,
    api_key: str | None = None,
    on_token: Callable[[ShownToken], object] | None = None,
    **options: Any,
) -> Outcome:
    """Make one answer and return what became of it. Blocks; Ctrl-C stops both engines.

    Args:
        request: what to answer.
        engine: the device, or None for the cloud alone.
        cloud_url: the cloud's base URL, ``http://host:port/v1``, or None for the device alone.
        api_key: the cloud's key; default PDD_CLOUD_API_KEY.
        on_token: called with every token at the moment it is shown.
        options: as for `AnswerSession`: `policies`, `rate`, `profile`, `patience`, `speed`, `grammars` and more.

    Raises:
        PDDError: as `AnswerSession` does.
    """

    async def run(cloud: CloudClient | None) -> Outcome:
        async with AnswerSession(request, engine=engine, cloud=cloud, **options) as answer:
            async for token in answer:
                if on_token is not None:
                    on_token(token)
        return answer.outcome

    async def main() -> Outcome:
        if cloud_url is None:
            return await run(None)
        async with CloudClient(cloud_url, api_key=api_key) as cloud:
            return await run(cloud)

    return anyio.run(main)
