"""Each fails once its shim in pdd_vllm_plugin/compat.py is no longer needed: then remove the shim."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest


def test_vllm_cpus_own_command_still_does_not_start():
    script = Path(sys.executable).parent / "vllm"
    if not script.exists():
        pytest.skip("no vllm command is installed")
    run = subprocess.run([str(script), "--version"], capture_output=True, text=True, timeout=280)
    assert run.returncode != 0, "`vllm` starts: provide_vllm_metadata() can go"
    assert "PackageNotFoundError" in run.stderr


def test_the_number_of_api_servers_still_has_no_public_name():
    from vllm.config import ParallelConfig

    assert hasattr(ParallelConfig(), "_api_process_count")
    assert hasattr(ParallelConfig(), "_api_process_rank")
    assert not hasattr(ParallelConfig(), "api_process_count"), "use the public field in api_process_count()"
    assert not hasattr(ParallelConfig(), "api_process_rank"), "use the public field in api_process_rank()"


def test_api_processes_are_still_spawned_by_the_process_that_serves():
    import inspect

    from vllm.v1.utils import APIServerProcessManager

    made = inspect.getsource(APIServerProcessManager.__init__)
    assert 'get_context("spawn")' in made, "see whether server_identity() still names the server"
    assert "server_id" not in made, "see whether server_identity() can go"


def test_vllm_still_answers_with_another_id_than_it_passes_to_the_engine(cloud, client):
    from cloud_support import complete

    streamed = complete(client, budget=1)
    engine_ids = {name for step in cloud.steps() for name in step["made"]}
    own = next(name for name in engine_ids if name.startswith(streamed.completion_id))
    assert own.startswith(f"{streamed.completion_id}-0-"), "completion_id() can go"


def test_a_platform_still_does_not_tell_its_worker_class():
    from vllm.config import ParallelConfig
    from vllm.platforms import current_platform

    assert ParallelConfig().worker_cls == "auto"
    told = [name for name in dir(current_platform) if "worker" in name and "cls" in name]
    assert not told, f"platform_worker() can use {told}"


def test_a_request_still_cannot_bound_its_prefix_cache_hit():
    from vllm.v1.core.kv_cache_manager import KVCacheManager
    from vllm.v1.request import Request

    lookup = inspect.getsource(KVCacheManager.get_computed_blocks)
    assert "max_cache_hit_length = request.num_tokens - 1" in lookup, "see whether keep_from_prefix_cache() can go"
    assert "skip_reading_prefix_cache" in inspect.getsource(Request)


def test_vllms_tekken_still_has_one_spelling_for_all_parts_of_characters(tmp_path):
    import shutil

    import mistral_common
    from vllm.tokenizers.mistral import MistralTokenizer

    from pdd_vllm_plugin.token_bytes import TokenBytes

    shutil.copy(Path(mistral_common.__file__).parent / "data" / "tekken_240911.json", tmp_path / "tekken.json")
    tokenizer = MistralTokenizer.from_pretrained(str(tmp_path))
    table = TokenBytes(tokenizer).table()
    assert len(tokenizer.get_vocab()) < len(table) == tokenizer.vocab_size, "tekken_bytes() can go"
    assert len(set(table)) > len(table) - 10
    assert {bytes([byte]) for byte in range(256)} <= set(table)


def test_vllms_client_still_cannot_ask_one_of_its_engines():
    from vllm.engine.protocol import EngineClient

    public = inspect.signature(EngineClient.collective_rpc).parameters
    assert set(public) == {"self", "method", "timeout", "args", "kwargs"}, "ask_engine() can use it"
    assert set(inspect.signature(EngineClient.is_paused).parameters) == {"self"}, "ask_engine() can use it"


def test_one_engine_can_be_asked_as_ask_engine_does_it():
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.engine.core_client import AsyncMPClient, MPClient

    assert list(inspect.signature(AsyncMPClient._call_utility_async).parameters) == [
        "self", "method", "args", "engine",
    ]  # fmt: skip
    assert 'rank.to_bytes(2, "little") for rank in' in inspect.getsource(MPClient.__init__)
    assert EngineCore.is_scheduler_paused
    assert list(inspect.signature(EngineCore.collective_rpc).parameters)[:4] == [
        "self", "method", "timeout", "args",
    ]  # fmt: skip


def test_a_plugin_still_sees_the_configuration_only_when_the_engine_serves():
    from vllm.plugins.endpoint_plugins.interface import EndpointPlugin

    members = {name for name in vars(EndpointPlugin) if not name.startswith("_")}
    members |= set(EndpointPlugin.__annotations__)
    assert members == {"name", "required_tasks", "attach_router", "init_state"}, "check_before_launch() can go"
