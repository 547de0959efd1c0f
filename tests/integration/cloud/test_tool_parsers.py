"""The names that the device has for formats of tool calls are those of vLLM's parsers."""

from pdd_llamacpp_adapter.server.tools.tool_formats import FORMATS


def test_vllm_has_a_parser_of_each_name():
    from vllm.tool_parsers import ToolParserManager

    assert {form.parser for form in FORMATS} <= set(ToolParserManager.list_registered())
