"""Every field of the installed vLLM's request models has its row in the device's table."""

from __future__ import annotations

import pytest

from pdd_llamacpp_adapter.server.wire.field_table import CHAT, COMPLETIONS, RESPONSES


def models():
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

    return {"chat": (ChatCompletionRequest, CHAT), "completions": (CompletionRequest, COMPLETIONS)} | {
        "responses": (ResponsesRequest, RESPONSES)
    }


@pytest.mark.parametrize("route", ["chat", "completions", "responses"])
def test_every_field_of_vllm_s_has_a_row(route):
    model, table = models()[route]
    assert set(model.model_fields) - table.keys() == set()


def test_the_fields_inside_others_have_rows_too():
    from dataclasses import fields

    from vllm.entrypoints.generate.base.protocol import StreamOptions
    from vllm.sampling_params import StructuredOutputsParams

    kinds = {"json", "json_object", "regex", "choice", "grammar"}
    own = {one.name for one in fields(StructuredOutputsParams) if one.init}
    assert {f"structured_outputs.{name}" for name in own - kinds} <= CHAT.keys()
    assert {f"stream_options.{name}" for name in StreamOptions.model_fields} <= CHAT.keys()


def test_a_field_that_vllm_no_longer_reads_is_refused():
    from vllm.entrypoints.serve.engine.protocol import _REMOVED_GUIDED_FIELDS

    assert set(_REMOVED_GUIDED_FIELDS) - CHAT.keys() == set()
