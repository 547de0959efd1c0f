"""Token ids cross wherever they mean the same, however two files spell the tokens: made-up files of each kind."""

from __future__ import annotations

import pytest
from gguf_files import BLANK, CONTROL, NORMAL, UNKNOWN, UNUSED, USER, VOCABULARIES, Model, write_vocabulary

pytest.importorskip("llama_cpp")
pytest.importorskip("transformers")

from pdd_core.errors import TokenizerMismatch
from pdd_core.fingerprint import fingerprint, quoted
from pdd_core.handoff import VocabularyPiece
from pdd_llamacpp_adapter import DeviceEngine
from pdd_llamacpp_adapter.cloud.tokenizer_check import check_tokenizer
from pdd_llamacpp_adapter.engine.shared_model import SharedModel
from pdd_llamacpp_adapter.engine.vocabulary import Vocabulary
from pdd_vllm_plugin.token_bytes import TokenBytes

pytestmark = pytest.mark.anyio


def device_vocabulary(path):
    import llama_cpp.llama_cpp as L  # noqa: N812

    params = L.llama_model_default_params()
    params.vocab_only = True
    return Vocabulary(SharedModel(L.llama_model_load_from_file(str(path).encode(), params), L.llama_model_free))


def spelt(kind, text, sort):
    """How a tokenizer.json spells a token that a GGUF spells `text`."""
    if sort is USER and kind in ("spm", "ugm"):
        return text.replace(" ", BLANK)
    if kind == "wpm" and sort is NORMAL:
        return text[1:] if text.startswith(BLANK) else f"##{text}"
    return text


def cloud_tokenizer(kind, made):
    """The same vocabulary as transformers has it. Unused tokens are words, added ones, or holes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    tokens = [(spelt(kind, text, sort), sort, score) for text, sort, score in made.tokens]
    unused = [text for text, sort, _ in tokens if sort is UNUSED]
    words = {text: token for token, (text, _, _) in enumerate(tokens) if text not in unused[1:]}
    unknown = next((text for text, sort, _ in tokens if sort is UNKNOWN), None)
    blanks, byte_fallback, fuse = decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse()
    match kind:
        case "spm":
            model = models.BPE(vocab=words, merges=[], byte_fallback=True, unk_token=unknown)
            decoder = decoders.Sequence([blanks, byte_fallback, fuse])
        case "bpe":
            model, decoder = models.BPE(vocab=words, merges=[]), decoders.ByteLevel()
        case "ugm":
            scores = [(text, score) for text, _, score in tokens]
            model = models.Unigram(scores, unk_id=made.ids["unk"], byte_fallback=True)
            decoder = decoders.Sequence([byte_fallback, decoders.Metaspace(), fuse])
        case "wpm":
            model = models.WordPiece(vocab=words, unk_token=unknown)
            decoder = decoders.WordPiece(cleanup=False)
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoder
    special = [AddedToken(text, special=True) for text, sort, _ in tokens if sort in (CONTROL, UNKNOWN)]
    tokenizer.add_special_tokens(special)
    added = [text for text, sort, _ in tokens if sort is USER] + ([] if kind in ("bpe", "spm") else unused[:1])
    tokenizer.add_tokens([AddedToken(text, special=False) for text in added])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, additional_special_tokens=[str(token) for token in special]
    )


@pytest.fixture(scope="module", params=VOCABULARIES)
def both(request, tmp_path_factory):
    """One vocabulary as the two sides have it."""
    made = VOCABULARIES[request.param]()
    path = tmp_path_factory.mktemp("vocabularies") / "vocabulary.gguf"
    device = device_vocabulary(write_vocabulary(path, made))
    return made, cloud_tokenizer(request.param, made), device


async def checked(table, device, *, special_ids=()):
    async def piece(start):
        return VocabularyPiece(start=start, tokens=table[start : start + 1024])

    cloud = fingerprint(table, special_ids=special_ids, eos_ids=[device.eos_id] if device.eos_id >= 0 else [])
    await check_tokenizer(cloud, device, piece)


async def test_a_vocabulary_is_itself_on_both_sides(both):
    made, tokenizer, device = both
    table = TokenBytes(tokenizer).table()
    assert [(i, token) for i, token in enumerate(table) if token not in (None, device.token_bytes[i])] == []
    assert sum(token is not None for token in table) >= len(made) - 1, "hardly a hole"
    await checked(table, device, special_ids=tokenizer.all_special_ids)


async def test_it_says_what_the_tokenizer_decodes(both):
    """By its own decoder, in the middle of a text: a token's bytes are not our invention."""
    made, tokenizer, _ = both
    decoder, table = tokenizer.backend_tokenizer.decoder, TokenBytes(tokenizer).table()
    first = next(text for text in tokenizer.get_vocab() if text.isascii() and text.isalpha())
    compared = 0
    for text, token in tokenizer.get_vocab().items():
        decoded = decoder.decode([first, text])
        if made.tokens[token][1] in (NORMAL, USER) and "\ufffd" not in decoded:
            assert decoded.endswith(table[token].decode()), text
            compared += 1
    assert compared > len(made) / 4


async def test_every_token_counts(both):
    made, tokenizer, device = both
    table = TokenBytes(tokenizer).table()
    for token in {sort: token for token, (_, sort, _) in enumerate(made.tokens) if sort is not UNUSED}.values():
        altered = [*table[:token], b"other", *table[token + 1 :]]
        with pytest.raises(TokenizerMismatch) as caught:
            await checked(altered, device)
        assert f"token {token} is 'other' in the cloud and {quoted(table[token])} on the device" in str(
            caught.value
        )


async def test_one_blank_more_is_another_token(tmp_path):
    made = VOCABULARIES["spm"]()
    device = device_vocabulary(write_vocabulary(tmp_path / "v.gguf", made))
    table = TokenBytes(cloud_tokenizer("spm", made)).table()
    two = device.token_bytes.index(b"  ")
    table[two] = table[two + 1]
    with pytest.raises(TokenizerMismatch, match=f"token {two} is '   ' in the cloud and '  ' on the device"):
        await checked(table, device)


def test_what_ends_an_answer_without_a_cloud_is_in_the_file(tmp_path):
    made = VOCABULARIES["bpe"]()
    texts = [text for text, _, _ in made.tokens]
    end_of_message = texts.index("<|im_start|>")
    [path] = Model(made, metadata={"tokenizer.ggml.eom_token_id": end_of_message}).write(tmp_path / "m.gguf")
    with DeviceEngine.open(path, n_ctx=64) as engine:
        named = {texts.index("<|im_end|>"), texts.index("<|endoftext|>"), end_of_message}
        assert engine.vocab.stop_ids == named


def test_a_files_own_sampling_parameters_are_read(tmp_path):
    own = {"temp": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.05, "penalty_repeat": 1.1, "mirostat": 2}
    metadata = {f"general.sampling.{name}": value for name, value in own.items()}
    [path] = Model(VOCABULARIES["bpe"](), metadata=metadata).write(tmp_path / "m.gguf")
    with DeviceEngine.open(path, n_ctx=64) as engine:
        assert engine.sampling_defaults.given() == pytest.approx(
            {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.05, "repetition_penalty": 1.1}
        )


def test_a_file_without_them_has_none(loaded):
    assert loaded.sampling_defaults.given() == {}
