"""``/v1/completions``: an answer to a prompt that is taken as it is, without a chat template."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from starlette.routing import Route

from pdd_core.errors import InvalidRequest
from pdd_core.session_id import beginning_of_prompt
from pdd_llamacpp_adapter.request import check_token_ids
from pdd_llamacpp_adapter.server.answers.answering import new_id
from pdd_llamacpp_adapter.server.answers.delivery import stream_answer, whole_answer
from pdd_llamacpp_adapter.server.answers.prepared_answer import PreparedAnswer
from pdd_llamacpp_adapter.server.answers.read_request import read_request
from pdd_llamacpp_adapter.server.completions.completion_objects import CompletionChunks, text_completion
from pdd_llamacpp_adapter.server.completions.completion_request import CompletionRequest, one_prompt
from pdd_llamacpp_adapter.server.output.deltas import ContentDelta
from pdd_llamacpp_adapter.server.prompts.answer_format import grammar_of
from pdd_llamacpp_adapter.server.prompts.prepare import answer_request, on_worker_thread

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from pdd_llamacpp_adapter.server.answers.answering import Call
    from pdd_llamacpp_adapter.server.answers.service import AnswerSource, Service
    from pdd_llamacpp_adapter.server.output.deltas import Delta

PATH = "/v1/completions"


def routes(service: Service) -> list[Route]:
    """Return the route of legacy completions."""

    async def create(request: Request) -> Response:
        body, call = await read_request(request, CompletionRequest, service, answer_id=new_id("cmpl-"))
        body.check()
        prepared, prompt = await on_worker_thread(service, lambda: _prepare(body, call))
        echo, ids = prompt if body.echo else "", prepared.request.prompt_token_ids
        details = body.details(body.stream_options, logprobs=body.logprobs is not None)
        if body.stream:
            return stream_answer(call, prepared, CompletionChunks(call, details, ids, echo=echo))
        build = partial(text_completion, call, details, ids, echo=echo)
        return await whole_answer(call, prepared, build, receive=request.receive)

    return [Route(PATH, create, methods=["POST"])]


def _prepare(body: CompletionRequest, call: Call) -> tuple[PreparedAnswer, str]:
    """Return the prepared answer, and the prompt as text."""
    runtime = call.runtime
    vocab, prompt = runtime.vocab, one_prompt(body.prompt)
    if isinstance(prompt, str):
        # as llama.cpp's server and vLLM do: who writes a raw prompt writes its control tokens too
        most, text = runtime.context_limit(), prompt
        ids = vocab.tokenize(prompt, special=True, add_bos=body.add_special_tokens, most=most)
    else:
        check_token_ids(prompt, vocab.size, param="prompt")
        ids = prompt
        text = b"".join(vocab.piece(token) for token in prompt).decode("utf-8", "replace") if body.echo else ""
    if body.suffix:
        ids = _between(ids, body.suffix, runtime)
    grammar = grammar_of(body.response_format, body.structured_outputs)
    session = call.session(*beginning_of_prompt(ids))
    request = answer_request(ids, body.sampling(), runtime, grammar=grammar, where="prompt", session=session)
    return PreparedAnswer(runtime.check_grammar(request), PlainText()), text


def _between(prompt: list[int], suffix: str, runtime: AnswerSource) -> list[int]:
    """Return the prompt for what comes between `prompt` and `suffix`, as llama.cpp's ``/infill`` makes it.

    Raises:
        InvalidRequest: the model was not taught to fill in.
    """
    marks = runtime.vocab.infill_ids
    if marks is None:
        problem = "suffix is not supported: the model has no tokens for filling in the middle"
        raise InvalidRequest(problem, param="suffix", code="unsupported_parameter")
    before, behind, middle = marks
    return [before, *prompt, behind, *runtime.vocab.tokenize(suffix, most=runtime.context_limit()), middle]


class PlainText:
    """The parser of an answer that is nothing but text."""

    made_tool_calls = False

    def push(self, text: str) -> list[Delta]:
        """Return `text` as it is."""
        return [ContentDelta(text)] if text else []

    def finish(self) -> list[Delta]:
        """Return nothing: nothing is held back."""
        return []
