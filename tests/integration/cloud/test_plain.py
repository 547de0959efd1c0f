"""A request that has not opted in: the same answer, byte for byte, as vLLM without the plugin gives."""

import openai
import pytest
from cloud_support import KEY
from not_opted_in import REQUESTS, ask


@pytest.fixture(scope="module")
def plain_answers(plain, boots):
    with openai.OpenAI(base_url=plain, api_key=KEY, max_retries=0) as client, pytest.raises(openai.NotFoundError):
        client.get("/pdd/info", cast_to=object)  # it really is plain
    answers = ask(plain)
    boots.of("plain").stop()  # nobody else needs it, and it has 4 GB
    return answers


@pytest.fixture(scope="module")
def plugin_answers(cloud):
    return ask(cloud.base_url)


@pytest.mark.parametrize("name", REQUESTS)
def test_the_answer_is_that_of_plain_vllm(plain_answers, plugin_answers, name):
    assert plugin_answers[name] == plain_answers[name]
    assert len(plain_answers[name]) > 50
