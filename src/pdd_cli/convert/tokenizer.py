"""The cloud's tokenizer: GGUF's vocabulary with llama.cpp's marks, cutting a text as llama.cpp cuts it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import llama_cpp.llama_cpp as L  # noqa: N812 - the usual short name of the C functions

from pdd_core.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pdd_llamacpp_adapter.engine.vocabulary import Vocabulary

_BLANK = "\N{LOWER ONE EIGHTH BLOCK}"
"""How SentencePiece writes a blank."""
_CONTRACTED = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_CL100K = rf"{_CONTRACTED}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|%s| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*{_REST}"
"""tiktoken's cl100k_base, but for how many digits stay together."""
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*{_REST}"
)
_GPT2 = None
"""The expression of GPT-2 is that of the library itself."""
_DIGIT = r"\p{N}"
_EXPRESSIONS: dict[str, tuple[str | None, ...]] = {
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "exaone4"), (_GPT2,)),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), (_DIGIT, _GPT2)
    ),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2", "megrez", "kormo"), (_CL100K % _DIGIT,)),
    **dict.fromkeys(
        (
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "lfm2",
            "dbrx",
            "smaug-bpe",
            "glm4",
        ),
        (_CL100K % r"\p{N}{1,3}",),
    ),
    "tekken": (_TEKKEN,),
}
"""``tokenizer.ggml.pre`` -> what a text is split by, one after the other."""
_WHOLE_WORDS = {"llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2", "tekken"}
"""Where a word that is a token stays one, whatever its merges."""
TEXTS = (
    "The sky is blue because",
    "def area(width, height):\n    return width * height\n\n\nprint(area(3, 14159))\t# ok",
    "  two blanks, then   three; 12 + 345 = 357. \n  I'LL see, don't I?",
    "Grüße aus Zürich, привет, 北京 and 東京! \N{THUMBS UP SIGN} café",
)
"""What both sides must cut alike: prose, code, blanks, digits, accents, other scripts."""
_SPECIAL = L.LLAMA_TOKEN_ATTR_CONTROL | L.LLAMA_TOKEN_ATTR_UNKNOWN
_MATCHED = _SPECIAL | L.LLAMA_TOKEN_ATTR_USER_DEFINED
"""Attributes of tokens that are read as such wherever they stand in a text."""


def cloud_tokenizer(metadata: Mapping[str, Any], vocabulary: Vocabulary, handle: Any) -> Any:
    """Return transformers' tokenizer with the tokens of `vocabulary`.

    Args:
        metadata: that of the GGUF file.
        vocabulary: of the device's file.
        handle: llama.cpp's ``llama_vocab`` of the same.

    Raises:
        ModelError: no such tokenizer can be made; the message says of what.
    """
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    tokens = vocabulary.raw_tokens
    ids = dict(zip(tokens, range(len(tokens)), strict=True))
    if len(ids) < len(tokens):
        twice = next(text for number, text in enumerate(tokens) if ids[text] != number)
        raise ModelError(f"its vocabulary has the token {twice!r} twice")
    backend = _backend(metadata, tokens, ids, handle)
    marks = [L.llama_vocab_get_attr(handle, token) for token in range(len(tokens))]
    backend.add_tokens(
        [
            AddedToken(
                text,
                normalized=False,
                special=bool(mark & _SPECIAL),
                lstrip=bool(mark & L.LLAMA_TOKEN_ATTR_LSTRIP),
                rstrip=bool(mark & L.LLAMA_TOKEN_ATTR_RSTRIP),
            )
            for text, mark in zip(tokens, marks, strict=True)
            if mark & _MATCHED
        ]
    )
    unknown = metadata.get("tokenizer.ggml.unknown_token_id", -1)
    named = {"bos": vocabulary.bos_id, "eos": vocabulary.eos_id, "pad": L.llama_vocab_pad(handle), "unk": unknown}
    texts = {f"{name}_token": tokens[token] for name, token in named.items() if 0 <= token < len(tokens)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **texts)
    tokenizer.chat_template = metadata.get("tokenizer.chat_template")
    return tokenizer


def check_cuts(tokenizer: Any, vocabulary: Vocabulary) -> None:
    """Pass if `tokenizer` has the tokens of `vocabulary`, and cuts texts as it does, BOS and EOS included.

    Raises:
        ModelError: it does not; names the token or the text.
    """
    cloud = {(token, text) for text, token in tokenizer.get_vocab().items()}
    if other := cloud.symmetric_difference(enumerate(vocabulary.raw_tokens)):
        raise ModelError(f"the token {min(other)} is on one side only")
    special = [text for token, text in enumerate(vocabulary.raw_tokens) if text and vocabulary.is_special(token)]
    for text in (*TEXTS, *(f"so{text} is{text}{text}" for text in (*special[:3], *special[-3:]))):
        ours, theirs = vocabulary.tokenize(text, special=True, add_bos=True), tokenizer.encode(text)
        if ours != theirs:
            raise ModelError(f"the text {text!r} has the tokens {ours} on the device, {theirs} in the cloud")


def _backend(metadata: Mapping[str, Any], tokens: Sequence[str], ids: Mapping[str, int], handle: Any) -> Any:
    from tokenizers import processors

    kind = metadata["tokenizer.ggml.model"]
    if kind == "llama":
        backend = _sentencepiece(metadata, tokens, ids)
    elif kind == "gpt2":
        backend = _byte_level(metadata, ids)
    else:
        raise ModelError(f"its tokenizer.ggml.model is {kind}, not llama or gpt2")
    begin = L.llama_vocab_bos(handle) if L.llama_vocab_get_add_bos(handle) else -1
    end = L.llama_vocab_eos(handle) if L.llama_vocab_get_add_eos(handle) else -1
    before, behind = ([tokens[token]] if token >= 0 else [] for token in (begin, end))
    backend.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *behind],
        pair=[*before, "$A", *behind, *before, "$B:1", *behind],
        special_tokens=[(text, ids[text]) for text in {*before, *behind}],
    )
    return backend


def _sentencepiece(metadata: Mapping[str, Any], tokens: Sequence[str], ids: Mapping[str, int]) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers

    prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
    unknown = metadata.get("tokenizer.ggml.unknown_token_id", 0)
    if "tokenizer.ggml.scores" not in metadata:
        raise ModelError("its vocabulary has no tokenizer.ggml.scores, by which the cloud could join pieces")
    backend = Tokenizer(
        models.BPE(
            vocab=dict(ids),
            merges=_merges(tokens, metadata["tokenizer.ggml.scores"], ids),
            unk_token=tokens[unknown],
            byte_fallback=True,
        )
    )
    blanks = normalizers.Replace(" ", _BLANK)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(_BLANK), blanks]) if prefix else blanks
    steps = [decoders.Replace(_BLANK, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if prefix else [])])
    return backend


def _merges(tokens: Sequence[str], scores: Sequence[float], ids: Mapping[str, int]) -> list[tuple[str, str]]:
    """Every way to make a token of two, best score first: llama.cpp joins what makes the best token."""
    ways = [
        (-scores[token], text[:at], text[at:])
        for token, text in enumerate(tokens)
        for at in range(1, len(text))
        if text[:at] in ids and text[at:] in ids
    ]
    ways.sort(key=lambda way: way[0])
    return [(left, right) for _, left, right in ways]


def _byte_level(metadata: Mapping[str, Any], ids: Mapping[str, int]) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    pre = metadata.get("tokenizer.ggml.pre")
    if pre not in _EXPRESSIONS:
        raise ModelError(f"its tokenizer.ggml.pre is {pre}, by which the cloud cannot split texts")
    # a merge may begin with a blank, but no left half is empty
    pairs = [
        (merge[:at], merge[at + 1 :])
        for merge in metadata["tokenizer.ggml.merges"]
        for at in [merge.index(" ", 1)]
    ]
    whole_words = pre in _WHOLE_WORDS
    backend = Tokenizer(models.BPE(vocab=dict(ids), merges=pairs, ignore_merges=whole_words))
    splits = [pre_tokenizers.Split(Regex(found), "isolated") for found in _EXPRESSIONS[pre] if found is not None]
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=_GPT2 in _EXPRESSIONS[pre])
    backend.pre_tokenizer = pre_tokenizers.Sequence([*splits, last])
    backend.decoder = decoders.ByteLevel()
    return backend
