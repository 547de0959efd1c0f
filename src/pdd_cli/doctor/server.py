"""Is the plugin active in a running cloud, and does a device's model fit it?"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pdd_cli.demo_model import demo_source
from pdd_cli.doctor.findings import fail, ok, warn
from pdd_cli.extras import CLONE, require
from pdd_cli.urls import openai_base_url
from pdd_core.errors import (
    CloudError,
    CloudRefused,
    CloudUnreachable,
    PDDError,
    SchemaVersionError,
    TokenizerMismatch,
)
from pdd_core.http_client import is_loopback, proxy_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from contextlib import AbstractContextManager

    from pdd_cli.doctor.findings import Finding
    from pdd_llamacpp_adapter import DeviceEngine

_N_CTX = 256
"""Enough to load a model; nothing is computed."""


async def server(url: str | None, api_key: str | None, gguf: str | None) -> AsyncIterator[Finding]:
    """Check the cloud at `url`, the device model `gguf`, and the two together, as far as they are given."""
    try:
        opened: AbstractContextManager[DeviceEngine | None] = nullcontext() if gguf is None else _open(gguf)
    except PDDError as error:
        yield fail("device model", str(error), "give the path of a GGUF file, or demo")
        opened = nullcontext()
    with opened as engine:
        if engine is not None:
            vocab = engine.vocab
            yield ok("device model", f"{gguf}: {vocab.size:,} tokens, end of sequence {vocab.eos_id}")
        if url is not None:
            async for finding in _cloud(openai_base_url(url), api_key, engine):
                yield finding


def _open(gguf: str) -> DeviceEngine:
    require("device", need="checking a device model")
    from pdd_llamacpp_adapter import DeviceEngine

    return DeviceEngine.open(demo_source() if gguf == "demo" else Path(gguf), n_ctx=_N_CTX)


async def _cloud(base_url: str, api_key: str | None, engine: DeviceEngine | None) -> AsyncIterator[Finding]:
    from pdd_llamacpp_adapter.cloud.cloud_client import CloudClient

    for found in proxy_finding(base_url):
        yield found
    async with CloudClient(base_url, api_key=api_key) as client:
        try:
            info = await client.connect()
        except (CloudError, SchemaVersionError) as error:
            yield cloud_problem(base_url, error)
            return
        what = f"{info.engine}, plugin {info.plugin_version}, model {info.model}: {', '.join(info.features)}"
        yield ok("cloud", what)
        if engine is None:
            return
        try:
            await client.connect(engine.vocab)
        except TokenizerMismatch as error:
            yield fail("tokenizer", str(error), "use a GGUF of the model that the cloud serves")
        else:
            yield ok("tokenizer", f"{info.tokenizer.size:,} tokens are the same on both sides")


def proxy_finding(base_url: str) -> Iterator[Finding]:
    """Say which proxy of the environment is in the way to the cloud, if one is."""
    proxy = proxy_of(base_url)
    if proxy is None:
        return
    exempt = f"export NO_PROXY={urlsplit(base_url).hostname}"
    if is_loopback(base_url):
        what = f"{base_url} is asked directly here, but other clients would ask the proxy {proxy} for it"
        yield warn("proxy", what, exempt)
    else:
        what = f"{base_url} is asked through the proxy {proxy}, as the environment says"
        yield warn("proxy", what, f"if the cloud is reached without it: {exempt}")


def cloud_problem(base_url: str, error: PDDError) -> Finding:
    """Explain why the cloud does not serve handoffs."""
    match error:
        case CloudUnreachable():
            return fail("cloud", str(error), "check the address, and that vLLM is up: `pdd-device cloud`")
        case CloudRefused(status=401 | 403):
            return fail("cloud", f"{base_url} refuses the key", "give its key: --api-key or PDD_CLOUD_API_KEY")
        case CloudRefused(status=404):
            return fail(
                "cloud",
                f"{base_url} answers, but has no /pdd/info: the plugin is not active there",
                "start it with `pdd-device cloud`, or with VLLM_PLUGINS=pdd in its environment",
            )
        case SchemaVersionError():
            return fail("cloud", str(error), f"update both sides; {CLONE}pip install .")
        case _:
            return fail("cloud", str(error), "check that the address is that of a vLLM server")
