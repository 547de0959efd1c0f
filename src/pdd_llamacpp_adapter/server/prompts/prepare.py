"""What a client asks for, made into what a session takes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Protocol, TypeVar

import anyio

from pdd_core.errors import InvalidRequest, ModelError
from pdd_core.session_id import beginning_of_chat
from pdd_llamacpp_adapter.engine.bad_words import bad_word_ids
from pdd_llamacpp_adapter.engine.template_messages import joined
from pdd_llamacpp_adapter.request import (
    RESPONSE_FORMAT,
    AnswerRequest,
    OwnSettings,
    check_token_ids,
    context_overflow,
    requested,
)
from pdd_llamacpp_adapter.server.answers.prepared_answer import PreparedAnswer
from pdd_llamacpp_adapter.server.output.reasoning import CLOSES, OPENS, ReasoningStart, reasoning_start
from pdd_llamacpp_adapter.server.prompts.answer_format import grammar_of
from pdd_llamacpp_adapter.server.prompts.answer_parser import output_parser
from pdd_llamacpp_adapter.server.prompts.marked import span_of_tools, spans_of_parts
from pdd_llamacpp_adapter.server.prompts.rendering import Rendering
from pdd_llamacpp_adapter.server.tools.tool_use import plan_tools
from pdd_llamacpp_adapter.server.wire.sampling_fields import Sampling

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pdd_core.refinement.spans import Span
    from pdd_llamacpp_adapter.engine.vocabulary import Vocabulary
    from pdd_llamacpp_adapter.request import Grammar
    from pdd_llamacpp_adapter.server.answers.answering import Call
    from pdd_llamacpp_adapter.server.answers.service import AnswerSource, Service
    from pdd_llamacpp_adapter.server.prompts.marked import MarkedPart
    from pdd_llamacpp_adapter.server.tools.tool_use import ToolPlan
    from pdd_llamacpp_adapter.server.wire.json_body import Json

Made = TypeVar("Made")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatInput:
    """A chat to go on with, in the shapes of OpenAI's chat completions."""

    messages: Sequence[Json]
    """Roles system, developer, user, assistant (with tool_calls) and tool; `content` is a string, a list of
    ``{"type": "text", "text": ...}``, or None."""
    tools: Sequence[Json] = ()
    tool_choice: str | Json | None = None
    parallel_tool_calls: bool = True
    response_format: Json | None = None
    format_param: str = RESPONSE_FORMAT
    """What the route calls `response_format`."""
    structured_outputs: Json | None = None
    """vLLM's."""
    include_reasoning: bool = True
    """Whether thoughts are returned, besides being made."""
    sampling: Sampling = field(default_factory=Sampling)
    own: OwnSettings = field(default_factory=OwnSettings)
    """Settings that this answer has otherwise."""
    rendering: Rendering = field(default_factory=Rendering)
    """What else the prompt depends on."""
    marked: Sequence[MarkedPart] = ()
    """Parts that stay when the prompt is refined."""


async def prepare(chat: ChatInput, runtime: AnswerSource) -> PreparedAnswer:
    """Render, tokenise and check a chat. On a worker thread: a long chat takes tens of milliseconds.

    Cancelled, it does not wait for the thread, which nothing can stop: the server ends in spite of it.

    Raises:
        InvalidRequest: a field that cannot be obeyed.
        ContextOverflow: the prompt leaves no room for the answer.
    """
    return await anyio.to_thread.run_sync(_prepare, chat, runtime, abandon_on_cancel=True)


async def prepare_body(body: ChatBody, call: Call) -> PreparedAnswer:
    """Make a chat of a request's body, and prepare it: on a worker thread, too.

    Raises:
        InvalidRequest, ContextOverflow: as `prepare` and `body.chat_input`.
        DeviceBusy: as `on_worker_thread`.
    """
    return await on_worker_thread(call.service, lambda: _prepare(body.chat_input(), call.runtime, call))


async def count_prompt(body: ChatBody, call: Call) -> int:
    """Return how many tokens the prompt of a request's body has, whether or not there is room for an answer.

    Raises:
        InvalidRequest, DeviceBusy: as `prepare_body`.
        ContextOverflow: the prompt is so long that it is not even read.
    """
    return await on_worker_thread(call.service, lambda: len(_prompt(body.chat_input(), call.runtime)[1]))


async def on_worker_thread(service: Service, work: Callable[[], Made]) -> Made:
    """Return what `work` makes of a request, on a worker thread. Only a few are at work at a time.

    Raises:
        DeviceBusy: the queue is full, so it would be done in vain.
        ServerStopping: the server was told to stop before it was done.
    """

    async def made() -> Made:
        async with service.preparing:
            service.queue.check()
            return await anyio.to_thread.run_sync(work, abandon_on_cancel=True)

    return await service.incoming.prepare(made)


class ChatBody(Protocol):
    """A route's request for an answer to a chat."""

    def chat_input(self) -> ChatInput:
        """Return what is asked for in the server's own words."""


def _prompt(chat: ChatInput, runtime: AnswerSource) -> tuple[ToolPlan, list[int]]:
    vocab = runtime.vocab
    try:
        chat.rendering.check(vocab.chat_template)
        plan = plan_tools(chat.tools, chat.tool_choice, chat.parallel_tool_calls, template=vocab.chat_template)
        return plan, _rendered(chat, plan, vocab, most=runtime.context_limit())
    except ModelError as error:
        raise InvalidRequest(str(error), param="messages", code="no_chat_template") from error


def _prepare(chat: ChatInput, runtime: AnswerSource, call: Call | None = None) -> PreparedAnswer:
    vocab, wanted = runtime.vocab, grammar_of(chat.response_format, chat.structured_outputs)
    if wanted is not None and wanted.param == RESPONSE_FORMAT:
        wanted = replace(wanted, param=chat.format_param)
    plan, prompt = _prompt(chat, runtime)
    refines = runtime.refines or chat.own.refines
    protect = _protected(chat, plan, prompt, vocab) if refines else []
    # a grammar leaves no room for thoughts
    thoughts = _thoughts(chat, prompt, vocab) if wanted is None else ReasoningStart.NEVER
    session = None if call is None else call.session(beginning_of_chat(chat.messages))
    request = answer_request(
        prompt, chat.sampling, runtime, grammar=plan.constraint(wanted), protect=protect, session=session
    )
    request = replace(runtime.check_grammar(request), own=chat.own)
    parser = output_parser(reasoning=thoughts, tools=plan, words=wanted, shown=chat.include_reasoning)
    return PreparedAnswer(request=request, parser=parser, only_calls=plan.grammar is not None)


def _thoughts(chat: ChatInput, prompt: Sequence[int], vocab: Vocabulary) -> ReasoningStart:
    if chat.rendering.continue_final_message:
        begun = joined(chat.messages[-1].get("content"))
        if begun.rfind(OPENS) > begun.rfind(CLOSES):
            return ReasoningStart.INSIDE
    return reasoning_start(prompt, vocab.piece)


def _rendered(chat: ChatInput, plan: ToolPlan, vocab: Vocabulary, *, most: int | None = None) -> list[int]:
    messages = plan.messages(chat.messages)
    return vocab.render_chat(messages, tools=plan.template_tools, most=most, **chat.rendering.options())


def _protected(chat: ChatInput, plan: ToolPlan, prompt: Sequence[int], vocab: Vocabulary) -> list[Span]:
    """Return what the prompt's tokens alone do not tell: the marked parts, and tools wherever they were put.

    Raises:
        InvalidRequest: a marked part is not in the prompt.
    """
    spans = spans_of_parts(chat.marked, prompt, vocab) if chat.marked else []
    if not plan.tools:
        return spans
    try:
        without = _rendered(chat, replace(plan, tools=()), vocab)
    except InvalidRequest:  # the template insists on tools: they may be anywhere
        return [(0, len(prompt))]
    tools = span_of_tools(prompt, without)
    return spans if tools is None else [*spans, tools]


def answer_request(
    prompt: Sequence[int],
    sampling: Sampling,
    runtime: AnswerSource,
    *,
    grammar: Grammar | None = None,
    protect: Sequence[Span] = (),
    where: str = "messages",
    session: str | None = None,
) -> AnswerRequest:
    """Return the request for an answer to `prompt`, whose spans `protect` stay when it is refined.

    `where` is the field that has the prompt, `session` what the conversation is called before routers.

    Raises:
        InvalidRequest: a value out of its bounds, or a token id that the model does not have.
        ContextOverflow: prompt and answer together are too long for everyone who could make it.
    """
    for name in ("logit_bias", "stop_token_ids", "allowed_token_ids"):
        check_token_ids(getattr(sampling, name) or (), runtime.vocab.size, param=name)
    bad_word_ids(sampling.bad_words, runtime.vocab)
    fields = asdict(sampling)
    left_out = fields.pop("left_out")
    fields |= {name: value for name, value in runtime.sampling_defaults().given().items() if name in left_out}
    limit = runtime.context_limit()
    if sampling.max_tokens is None:
        fields["max_tokens"] = runtime.default_max_tokens(len(prompt))
    if len(prompt) + max(fields["max_tokens"], 1) > limit:
        if sampling.max_tokens is None:
            raise context_overflow(limit, f"your {where} resulted in {len(prompt)} tokens: the prompt is too long")
        raise context_overflow(limit, requested(len(prompt), sampling.max_tokens, where=where))
    return AnswerRequest(prompt_token_ids=prompt, grammar=grammar, protect=protect, session=session, **fields)
