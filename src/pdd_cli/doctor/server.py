"""Is the plugin active in a running cloud, and does a device's model fit it?"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pdd_cli.demo_model import demo_source
from pdd_cli.doctor.findings import fail, ok, warn
from pdd_cli.doctor.hardware import hardware
from pdd_cli.doctor.kv_cache import kv_cache
from pdd_cli.doctor.router import router
from pdd_cli.extras import CLONE, require
from pdd_cli.urls import openai_base_url
from pdd_core.env import ServeSettings
from pdd_core.errors import (
    CloudError,
    CloudRefused,
    CloudUnreachable,
    ConfigurationError,
    InvalidRequest,
    ModelError,
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
    from pdd_llamacpp_adapter.engine.vocabulary import Vocabulary

_N_CTX = 256
"""Enough to load a model; nothing is computed."""
_OTHER_MODEL = "use a GGUF of the chat model with its own template; /v1/completions works as it is"


async def server(url: str | None, api_key: str | None, gguf: str | None) -> AsyncIterator[Finding]:
    """Check the cloud at `url`, the device model `gguf`, and the two together, as far as they are given."""
    try:
        opened: AbstractContextManager[DeviceEngine | None] = nullcontext() if gguf is None else _open(gguf)
    except PDDError as error:
        yield fail("device model", str(error), "give the path of a GGUF file, or demo")
        opened = nullcontext()
    try:
        settings = ServeSettings.load(None, {})
    except ConfigurationError as error:
        yield fail("settings", str(error), "correct the PDD_ variable")
        settings = ServeSettings.model_construct()
    with opened as engine:
        if engine is not None:
            for finding in device_model(str(gguf), engine, n_ctx=settings.n_ctx):
                yield finding
            for finding in hardware(_path(str(gguf)), settings.llama):
                yield finding
        if url is not None:
            async for finding in _cloud(openai_base_url(url), api_key, engine, header=settings.session_header):
                yield finding


def device_model(gguf: str, engine: DeviceEngine, *, n_ctx: int) -> Iterator[Finding]:
    """Check a model that could be loaded; `n_ctx` is the context that `pdd-device serve` would give it."""
    vocab = engine.vocab
    yield ok("device model", f"{gguf}: {vocab.size:,} tokens, end of sequence {vocab.eos_id}")
    trained = engine.n_ctx_train
    if 0 < trained < n_ctx:
        yield warn(
            "context length",
            f"the model was trained on at most {trained:,} tokens, and n_ctx is {n_ctx:,}: beyond these, "
            "answers get worse",
            f"export PDD_N_CTX={trained}",
        )
    yield chat_template(vocab)


def chat_template(vocab: Vocabulary) -> Finding:
    """Check that the model's chat template is there, and renders the simplest chat."""
    check = "chat template"
    try:
        prompt = vocab.render_chat([{"role": "user", "content": "Hi"}])
        name = "with tools" if vocab.chat_template.supports_tools else "without tools"
    except ModelError as error:
        return warn(check, f"{error}; chats will be refused", _OTHER_MODEL)
    except InvalidRequest as error:
        return fail(check, str(error), _OTHER_MODEL)
    if not prompt:
        return fail(check, "a chat becomes an empty prompt", _OTHER_MODEL)
    return ok(check, f"renders a chat, {name}")


def _open(gguf: str) -> DeviceEngine:
    require("device", need="checking a device model")
    from pdd_llamacpp_adapter import DeviceEngine

    # on the CPU, with one thread: nothing is computed
    return DeviceEngine.open(_path(gguf), n_ctx=_N_CTX, gpu_layers=0, threads=1, kv=True)


def _path(gguf: str) -> Path:
    return demo_source() if gguf == "demo" else Path(gguf)


async def _cloud(
    base_url: str, api_key: str | None, engine: DeviceEngine | None, *, header: str
) -> AsyncIterator[Finding]:
    from pdd_llamacpp_adapter.cloud.cloud_client import CloudClient

    for found in proxy_finding(base_url):
        yield found
    async with CloudClient(base_url, api_key=api_key, session_header=header) as client:
        try:
            info = await client.connect()
        except (CloudError, SchemaVersionError) as error:
            yield cloud_problem(base_url, error)
            return
        what = f"{info.engine}, plugin {info.plugin_version}, model {info.model}: {', '.join(info.features)}"
        yield ok("cloud", what)
        async for found in router(base_url, client, info, api_key=api_key, header=header):
            yield found
        if engine is not None:
            try:
                await client.connect(engine.vocab)
            except TokenizerMismatch as error:
                yield fail("tokenizer", str(error), "use a GGUF of the model that the cloud serves")
                return
            yield ok("tokenizer", f"{info.tokenizer.size:,} tokens are the same on both sides")
        async for found in kv_cache(client, info, engine):
            yield found


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
            return fail(
                "cloud", f"{base_url} refuses the key", "give its key: PDD_CLOUD_API_KEY or --api-key-file"
            )
        case CloudRefused(status=404):
            return fail(
                "cloud",
                f"{base_url} answers, but has no /pdd/info: the plugin is not active there",
                "start it with `pdd-device cloud`, or with VLLM_PLUGINS=pdd in its environment",
            )
        case SchemaVersionError():
            # the message says which side is the older one
            return fail("cloud", str(error), f"update that side; {CLONE}pip install .")
        case _:
            return fail("cloud", str(error), "check that the address is that of a vLLM server")
