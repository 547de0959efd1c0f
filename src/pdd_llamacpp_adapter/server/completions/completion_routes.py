"""``/v1/completions``: an answer to a prompt that is taken as it is, without a chat template."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from starlette.routing import Route

from pdd_llamacpp_adapter.request import check_token_ids
from pdd_llamacpp_adapter.server.answers.answering import new_id
from pdd_llamacpp_adapter.server.answers.delivery import stream_answer, whole_answer
from pdd_llamacpp_adapter.server.answers.prepared_answer import PreparedAnswer
from pdd_llamacpp_adapter.server.answers.read_request import read_request
from pdd_llamacpp_adapter.server.completions.completion_objects import CompletionChunks, text_completion
from pdd_llamacpp_adapter.server.completions.completion_request import CompletionRequest, one_prompt
from pdd_llamacpp_adapter.server.output.deltas import ContentDelta
from pdd_llamacpp_adapter.server.prompts.prepare import answer_request, on_worker_thread

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from pdd_llamacpp_adapter.server.answers.service import AnswerSource, Service
    from pdd_llamacpp_adapter.server.output.deltas import Delta

PATH = "/v1/completions"


def routes(service: Service) -> list[Route]:
    """Return the route of legacy completions."""

    async def create(request: Request) -> Response:
        body, call = await read_request(request, CompletionRequest, service, answer_id=new_id("cmpl-"))
        body.check()
        prepared, prompt = await on_worker_thread(service, lambda: _prepare(body, call.runtime))
        echo = prompt if body.echo else ""
        if body.stream:
            writer = CompletionChunks(
                call,
                echo=echo,
                include_usage=body.stream_options.include_usage,
                with_logprobs=body.logprobs is not None,
            )
            return stream_answer(call, prepared, writer)
        build = partial(text_completion, call, echo=echo)
        return await whole_answer(call, prepared, build, receive=request.receive)

    return [Route(PATH, create, methods=["POST"])]


def _prepare(body: CompletionRequest, runtime: AnswerSource) -> tuple[PreparedAnswer, str]:
    """Return the prepared answer, and the prompt as text."""
    vocab, prompt = runtime.vocab, one_prompt(body.prompt)
    if isinstance(prompt, str):
        # as llama.cpp's server and vLLM do: who writes a raw prompt writes its control tokens too
        ids, text = vocab.tokenize(prompt, special=True, add_bos=True, most=runtime.context_limit()), prompt
    else:
        check_token_ids(prompt, vocab.size, param="prompt")
        ids = prompt
        text = b"".join(vocab.piece(token) for token in prompt).decode("utf-8", "replace") if body.echo else ""
    return PreparedAnswer(answer_request(ids, body.sampling(), runtime, where="prompt"), PlainText()), text


class PlainText:
    """The parser of an answer that is nothing but text."""

    made_tool_calls = False

    def push(self, text: str) -> list[Delta]:
        """Return `text` as it is."""
        return [ContentDelta(text)] if text else []

    def finish(self) -> list[Delta]:
        """Return nothing: nothing is held back."""
        return []
