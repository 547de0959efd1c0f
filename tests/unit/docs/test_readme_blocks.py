from pathlib import Path

import pytest
from readme import blocks, serve_command

README = Path(__file__).parents[3] / "README.md"
CPU_FLAGS = ["--dtype", "float32", "--enforce-eager"]


def serving(start):
    """The one block of the README that has this text in its server command."""
    found = [block for block in blocks(README, "bash") if f"{start} serve MODEL" in block]
    assert len(found) == 1
    return found[0]


def test_blocks_are_told_apart_by_language(tmp_path):
    path = tmp_path / "some.md"
    path.write_text("text\n```python\na = 1\n\nb = 2\n```\n```bash\nls\n```\n```\nplain\n```\n```python\nc\n```\n")
    assert blocks(path, "python") == ["a = 1\n\nb = 2\n", "c\n"]
    assert blocks(path, "bash") == ["ls\n"]


def test_a_command_is_split_into_settings_and_words():
    env, argv = serve_command("export KEY=secret\nA=1 B='x y' run it \\\n  --flag value=3 \\\n  --last\n")
    assert env == {"A": "1", "B": "x y"}
    assert argv == ["run", "it", "--flag", "value=3", "--last"]


@pytest.mark.parametrize("block", ["export KEY=secret\n", "one\ntwo\n"])
def test_no_command_or_two_are_an_error(block):
    with pytest.raises(ValueError, match="commands where one is expected"):
        serve_command(block)


def test_on_a_cpu_only_the_program_and_the_cpu_flags_differ():
    cuda_env, cuda = serve_command(serving("vllm"))
    cpu_env, cpu = serve_command(serving("python -m pdd_vllm_plugin"))
    assert cuda_env == cpu_env == {"VLLM_PLUGINS": "pdd"}
    assert cuda[0] == "vllm"
    assert cpu == ["python", "-m", "pdd_vllm_plugin", *cuda[1:], *CPU_FLAGS]


def test_the_command_is_that_of_pdd_device_cloud():
    from pdd_cli.cloud_command import PLUGIN, PLUGIN_FLAGS

    env, argv = serve_command(serving("vllm"))
    assert env["VLLM_PLUGINS"] == PLUGIN
    assert argv == ["vllm", "serve", "MODEL", *(word for flag in PLUGIN_FLAGS for word in flag)]


def test_all_python_blocks_are_whole_programs():
    for block in blocks(README, "python"):
        compile(block, "README.md", "exec")
    assert len(blocks(README, "python")) == 3


def test_the_policy_grants_less_under_load_and_else_leaves_it_to_the_next():
    module = {}
    exec(blocks(README, "python")[2], module)  # noqa: S102
    wish = module["BudgetRequest"]("id", num_prompt_tokens=9, max_tokens=99, decode_budget=None, priority=0)
    load = module["CloudLoad"]
    assert module["pdd_decode_budget"](wish, load(running=33, waiting=0, kv_cache_usage=0.5)) == 8
    assert module["pdd_decode_budget"](wish, load(running=32, waiting=0, kv_cache_usage=0.5)) is None
