"""What a session checks and makes before anything is sent or computed."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import anyio

from pdd_core.hookspecs import PaceRequest, PaceTarget
from pdd_core.optin import MAX_PROTECTED
from pdd_llamacpp_adapter.engine.explicit_grammar import explicit_grammar
from pdd_llamacpp_adapter.engine.grammar_limits import check_limits
from pdd_llamacpp_adapter.request import check_token_ids, context_overflow, requested
from pdd_llamacpp_adapter.session.answer import Answer
from pdd_llamacpp_adapter.session.answer_text import AnswerText
from pdd_llamacpp_adapter.session.cells_fetch import REFINED, CellsFetch
from pdd_llamacpp_adapter.session.judging import Judging
from pdd_llamacpp_adapter.session.live_answer import LiveAnswer
from pdd_llamacpp_adapter.session.outcome import Mode
from pdd_llamacpp_adapter.session.pacing import GuardedPacer, default_policies
from pdd_llamacpp_adapter.session.refined_prompt_fetch import RefinedPromptFetch, protected_by_device
from pdd_llamacpp_adapter.session.session_setup import SessionSetup
from pdd_llamacpp_adapter.session.stop_ids import stop_ids

if TYPE_CHECKING:
    from pdd_core.handoff import StructuredOutputs
    from pdd_llamacpp_adapter.engine.device_engine import DeviceEngine
    from pdd_llamacpp_adapter.engine.grammar import GrammarEngine, GrammarMatcher
    from pdd_llamacpp_adapter.engine.vocabulary import Vocabulary
    from pdd_llamacpp_adapter.request import AnswerRequest
    from pdd_llamacpp_adapter.session.session_setup import SessionOptions


def fits(request: AnswerRequest, n_ctx: int, *, refinable: bool) -> bool:
    """Whether prompt and answer fit a context. A `refinable` prompt has to fit only once it is refined."""
    prompt = len(request.prompt_token_ids)
    if refinable and request.refine_ratio is not None:
        prompt = math.ceil(prompt * request.refine_ratio)
    return prompt + request.max_tokens <= n_ctx


def check_room(request: AnswerRequest, n_ctx: int, *, refinable: bool) -> None:
    """Refuse a prompt and answer that do not fit the device's context, not even once the prompt is refined.

    Raises:
        ContextOverflow: they do not.
    """
    if fits(request, n_ctx, refinable=refinable):
        return
    ratio = request.refine_ratio if refinable else None
    refined = "" if ratio is None else f"; a refined prompt of {ratio:.0%} does not fit either"
    problem = requested(len(request.prompt_token_ids), request.max_tokens, where="prompt")
    raise context_overflow(n_ctx, problem + refined)


def _text(request: AnswerRequest, vocab: Vocabulary) -> AnswerText:
    keeps_stop = request.include_stop_str_in_output
    return AnswerText(vocab.piece, stop=request.stop, min_tokens=request.min_tokens, keeps_stop=keeps_stop)


def check_ids(request: AnswerRequest, vocab: Vocabulary | None) -> None:
    """Refuse token ids that the model does not have.

    Raises:
        InvalidRequest: there is one.
    """
    if vocab is None:
        return
    for name in ("prompt_token_ids", "stop_token_ids", "logit_bias", "allowed_token_ids"):
        check_token_ids(getattr(request, name) or (), vocab.size, param=name)


def new_answer(request: AnswerRequest, options: SessionOptions) -> Answer:
    """Return the answer before its first token."""
    vocab = options.vocab
    text = None if vocab is None else _text(request, vocab)
    return Answer(
        request.prompt_token_ids,
        max_tokens=request.max_tokens,
        stop_ids=stop_ids(request, told=options.told, vocab=vocab),
        stop_token_ids=request.stop_token_ids,
        text=text,
        cloud=options.mode is not Mode.DEVICE_ONLY,
        device=options.engine is not None,
    )


def with_explicit_grammar(request: AnswerRequest, cloud: StructuredOutputs | None) -> AnswerRequest:
    """Return `request` with its grammar as `explicit_grammar` makes it.

    Raises:
        InvalidGrammar: as from there.
    """
    if request.grammar is None or request.grammar.explicit:
        return request
    return replace(request, grammar=explicit_grammar(request.grammar, cloud))


def check_grammar(request: AnswerRequest, n_ctx: int, grammars: GrammarEngine) -> None:
    """Refuse early what `grammar_matcher` would refuse, which then finds it compiled.

    If prompt and answer do not fit a context of `n_ctx` tokens, the cloud may make the answer, and take grammars
    that the device does not. Then only a grammar that could end a process is refused.

    Raises:
        InvalidGrammar: it cannot be compiled, or not safely.
    """
    if request.grammar is None:
        return
    if fits(request, n_ctx, refinable=False):
        grammars.check(request.grammar)
    else:
        check_limits(request.grammar)


async def grammar_matcher(
    request: AnswerRequest, engine: DeviceEngine | None, grammars: GrammarEngine | None
) -> GrammarMatcher | None:
    """Return the matcher of the request's grammar; None without a grammar, and without a device.

    Raises:
        InvalidGrammar: it cannot be compiled, or not safely.
    """
    if request.grammar is None:
        return None
    if engine is None:
        # what could end this process could end the cloud's, which may compile it too
        check_limits(request.grammar)
        return None
    if grammars is None:
        from pdd_llamacpp_adapter.engine.grammar import GrammarEngine

        grammars = GrammarEngine(engine.vocab, engine.vocab.stop_ids)
    return await anyio.to_thread.run_sync(grammars.matcher, request.grammar)


async def set_up(request: AnswerRequest, options: SessionOptions) -> SessionSetup:
    """Check a request, and make what its session works with.

    Raises:
        ContextOverflow: prompt and answer do not fit the device's context.
        InvalidGrammar: the request's grammar cannot be compiled.
        InvalidRequest: a token id that the model does not have.
        PolicyError: no usable pacer.
    """
    engine, vocab, handed_over = options.engine, options.vocab, options.mode is Mode.HANDOFF
    if engine is not None:
        check_room(request, engine.n_ctx, refinable=handed_over)
    check_ids(request, vocab)
    if request.grammar is not None and not request.grammar.explicit:
        info = None if options.cloud is None else options.cloud.info
        told = None if info is None else info.structured_outputs
        request = await anyio.to_thread.run_sync(with_explicit_grammar, request, told)
    matcher = await grammar_matcher(request, engine, options.grammars)
    pacer = GuardedPacer.resolve(
        options.policies or default_policies(),
        PaceRequest(num_prompt_tokens=len(request.prompt_token_ids), max_tokens=request.max_tokens),
        PaceTarget(options.rate, flush_within=options.flush_within),
    )
    live = LiveAnswer(new_answer(request, options))
    fetch, cells, reuse_refined = None, None, False
    if handed_over and engine is not None:
        history = engine.slot_for(request.prompt_token_ids).history
        reuse_refined = history is not None and history.begins(request.prompt_token_ids)
        if request.refine_ratio is not None:
            protected = await anyio.to_thread.run_sync(protected_by_device, request, engine.vocab)
            fetch = RefinedPromptFetch(live, request.refine_ratio, protected)
            if len(protected) > MAX_PROTECTED:  # a cloud would refuse the request
                problem = f"{len(protected)} parts of it have to stay, and a cloud takes {MAX_PROTECTED}"
                fetch.give_up("too_many_spans", problem)
        if request.kv:
            silence_s = options.patience.cells_silence_s
            cells = CellsFetch(live, engine.kv, options.cells_checks, silence_s=silence_s)
            if fetch is not None or reuse_refined:
                cells.give_up(REFINED, "it reads a refined prompt")
    return SessionSetup(
        request=request,
        options=options,
        live=live,
        pacer=pacer,
        judging=Judging(options.guard, live.answer),
        matcher=matcher,
        fetch=fetch,
        cells=cells,
        reuse_refined=reuse_refined,
    )
