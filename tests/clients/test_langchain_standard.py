"""LangChain's own tests of a chat model, with ChatOpenAI unmodified and the server as the model behind it.

What is skipped, LangChain's tests skip themselves: pictures, sound and PDF files, which the server refuses,
Anthropic's forms, and recorded answers. What may fail depends on what the demo model of 135 million parameters
writes. It differs between two times: see "Repeated prompts" in docs/server.md.
"""

import pytest
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

SKIPPED = {
    "test_audio_inputs": "the server takes text only",
    "test_image_inputs": "the server takes text only",
    "test_image_tool_message": "the server takes text only",
    "test_pdf_inputs": "the server takes text only",
    "test_pdf_tool_message": "the server takes text only",
    "test_anthropic_inputs": "the forms of content parts of another API",
    "test_stream_time": "it needs answers that were recorded",
}


def by_chance(reason):
    return pytest.mark.xfail(strict=False, reason=f"the demo model {reason}")


class TestChatModel(ChatModelIntegrationTests):
    @pytest.fixture(autouse=True)
    def served(self, device):
        self.server = device

    @property
    def chat_model_class(self):
        return ChatOpenAI

    @property
    def chat_model_params(self):
        return {
            "model": "default",
            "base_url": self.server.url,
            "api_key": self.server.api_key,
            "temperature": 0,
            "max_tokens": 100,
            "stream_usage": True,
        }

    @property
    def structured_output_kwargs(self):
        return {"method": "function_calling"}

    @property
    def supports_json_mode(self):
        return True

    @property
    def supports_model_override(self):
        return True

    @property
    def model_override_value(self):
        return "on-device"

    @by_chance("calls the tool with another number than the one in the question")
    @pytest.mark.parametrize("model", [{}, {"output_version": "v1"}], indirect=True)
    def test_tool_calling(self, model):
        super().test_tool_calling(model)

    @by_chance("calls the tool with another number than the one in the question")
    async def test_tool_calling_async(self, model):
        await super().test_tool_calling_async(model)

    @by_chance("adds arguments where the schema leaves room for them")
    def test_tool_calling_with_no_arguments(self, model):
        super().test_tool_calling_with_no_arguments(model)

    @by_chance("writes jokes that are longer than the answer may be")
    @pytest.mark.parametrize("schema_type", ["pydantic", "typeddict", "json_schema"])
    def test_structured_output(self, model, schema_type):
        super().test_structured_output(model, schema_type)

    @by_chance("writes jokes that are longer than the answer may be")
    @pytest.mark.parametrize("schema_type", ["pydantic", "typeddict", "json_schema"])
    async def test_structured_output_async(self, model, schema_type):
        await super().test_structured_output_async(model, schema_type)

    @by_chance("writes jokes that are longer than the answer may be")
    def test_structured_output_pydantic_2_v1(self, model):
        super().test_structured_output_pydantic_2_v1(model)

    @by_chance("writes jokes that are longer than the answer may be")
    def test_structured_output_optional_param(self, model):
        super().test_structured_output_optional_param(model)

    @by_chance("writes an object, but not always the one that it was asked for in words")
    def test_json_mode(self, model):
        super().test_json_mode(model)

    @by_chance("writes arguments that are longer than the answer may be")
    def test_unicode_tool_call_integration(self, model):
        super().test_unicode_tool_call_integration(model)

    @by_chance("calls no tool where it need not")
    @pytest.mark.parametrize("model", [{}, {"output_version": "v1"}], indirect=True)
    def test_agent_loop(self, model):
        super().test_agent_loop(model)


@pytest.mark.parametrize("name", SKIPPED)
def test_what_is_skipped_is_one_of_langchains_tests(name):
    assert hasattr(ChatModelIntegrationTests, name)
