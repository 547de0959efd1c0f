"""The flags in docs/deploy.md are those of the programs themselves."""

import shlex
from pathlib import Path

import pytest
from readme import blocks, serve_command
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.utils.argparse_utils import FlexibleArgumentParser

PAGE = Path(__file__).parents[3] / "docs/deploy.md"
BASH = blocks(PAGE, "bash")
IMAGE = "docker run --gpus all --ipc host --publish 8000:8000 --env VLLM_API_KEY vllm-pdd "


def parsed(flags):
    parser = make_arg_parser(FlexibleArgumentParser(exit_on_error=False))
    arguments = parser.parse_args(flags)
    validate_parsed_serve_args(arguments)
    return arguments


@pytest.mark.parametrize("block", [block for block in BASH if "vllm serve" in block])
def test_vllm_takes_the_flags(block):
    _, words = serve_command(block)
    arguments = parsed(words[2:])
    assert arguments.model_tag == "MODEL"
    assert arguments.scheduler_cls.startswith("pdd_vllm_plugin.")


def test_vllm_takes_what_the_image_passes_on():
    [line] = [line for block in BASH for line in block.splitlines() if line.startswith(IMAGE)]
    assert parsed(shlex.split(line.removeprefix(IMAGE))).tensor_parallel_size == 2


def test_vllm_router_takes_its_flags():
    from vllm_router.launch_router import parse_router_args

    [block] = [block for block in BASH if "--policy consistent_hash" in block]
    commands = [line for line in block.replace("\\\n", " ").splitlines() if line.startswith("vllm-router")]
    arguments = parse_router_args(shlex.split(commands[0])[1:])
    assert arguments.policy == "consistent_hash"
    assert arguments.worker_urls == ["http://vllm-1:8000", "http://vllm-2:8000"]
    assert arguments.api_key is None
