"""Small made-up GGUF files: one vocabulary for each kind that llama.cpp reads, and tiny models around them.

A vocabulary has tokens of every sort: normal, unknown, control, user-defined, unused, and bytes. Each long token
can be put together from two shorter ones, as in a trained vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from gguf import GGUFWriter, TokenType

if TYPE_CHECKING:
    from pathlib import Path

NORMAL, UNKNOWN, CONTROL = TokenType.NORMAL, TokenType.UNKNOWN, TokenType.CONTROL
USER, UNUSED, BYTE = TokenType.USER_DEFINED, TokenType.UNUSED, TokenType.BYTE

BLANK = "\N{LOWER ONE EIGHTH BLOCK}"
"""How SentencePiece writes a blank."""
LETTERS = "abcdefghijklmnopqrstuvwxyzäé.,!?0123456789\n"
PAIRS = ("th", "he", "in", "er", "an", "re", "on", "at", "en", "is")
WORDS = ("the", "sky", "is", "blue", "why", "in", "an", "sun")
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What ``tokenizer.ggml.*`` says."""

    model: str
    """``tokenizer.ggml.model``."""
    tokens: tuple[tuple[str, TokenType, float], ...]
    """Text as the file spells it, sort, and score."""
    ids: dict[str, int] = field(default_factory=dict)
    """`bos`, `eos`, `unk`, ... -> token id."""
    flags: dict[str, bool] = field(default_factory=dict)
    """`add_bos_token`, `add_eos_token`, `add_space_prefix`, ..."""
    merges: tuple[str, ...] = ()
    pre: str | None = None
    """``tokenizer.ggml.pre``."""

    def __len__(self) -> int:
        return len(self.tokens)

    def write(self, writer: GGUFWriter) -> None:
        writer.add_tokenizer_model(self.model)
        if self.pre is not None:
            writer.add_tokenizer_pre(self.pre)
        writer.add_token_list([text for text, _, _ in self.tokens])
        writer.add_token_scores([score for _, _, score in self.tokens])
        writer.add_token_types([int(sort) for _, sort, _ in self.tokens])
        if self.merges:
            writer.add_token_merges(list(self.merges))
        for name, token_id in self.ids.items():
            writer.add_uint32(f"tokenizer.ggml.{LONG_NAMES.get(name, name)}_token_id", token_id)
        for name, flag in self.flags.items():
            writer.add_bool(f"tokenizer.ggml.{name}", flag)


LONG_NAMES = {"unk": "unknown", "sep": "seperator", "pad": "padding"}  # as GGUF spells them


def spm(*, add_bos: bool = True, add_eos: bool = False, add_space_prefix: bool = True) -> Vocabulary:
    """SentencePiece, as of Llama 2 and Gemma: bytes as ``<0x0A>``, blanks as U+2581, two blanks user-defined."""
    tokens = [("<unk>", UNKNOWN, 0.0), ("<s>", CONTROL, 0.0), ("</s>", CONTROL, 0.0)]
    tokens += [(f"<0x{byte:02X}>", BYTE, 0.0) for byte in range(256)]
    tokens += [("  ", USER, -1000.0), ("   ", USER, -1000.0), ("<think>", USER, -1000.0), ("<ü>", USER, -1000.0)]
    tokens += [("<|im_start|>", CONTROL, -1000.0), ("<|im_end|>", CONTROL, -1000.0)]
    tokens += [("<unused0>", UNUSED, -1000.0), ("<unused1>", UNUSED, -1000.0)]
    built = _built(BLANK + LETTERS, *PAIRS, *WORDS, *(BLANK + word for word in WORDS))
    tokens += [(text, NORMAL, -float(rank)) for rank, text in enumerate(built)]
    return Vocabulary(
        model="llama",
        tokens=tuple(tokens),
        ids={"unk": 0, "bos": 1, "eos": 2},
        flags={"add_bos_token": add_bos, "add_eos_token": add_eos, "add_space_prefix": add_space_prefix},
    )


def bpe(*, pre: str = "llama-bpe", add_bos: bool = False, add_eos: bool = False) -> Vocabulary:
    """Byte-level BPE, as of Qwen, Llama 3 and SmolLM2, with added tokens in plain text behind the vocabulary."""
    alphabet = list(_byte_letters().values())
    blank = _byte_letters()[ord(" ")]
    built = [text for text in _built("", *PAIRS, *WORDS, *(blank + word for word in WORDS)) if len(text) > 1]
    tokens = [(text, NORMAL, 0.0) for text in [*alphabet, *built]]
    start = len(tokens)
    tokens += [("<|endoftext|>", CONTROL, 0.0), ("<|im_start|>", CONTROL, 0.0), ("<|im_end|>", CONTROL, 0.0)]
    tokens += [("<think>", USER, 0.0), ("    ", USER, 0.0), ("[ü]", USER, 0.0), ("[PAD0]", UNUSED, 0.0)]
    return Vocabulary(
        model="gpt2",
        pre=pre,
        tokens=tuple(tokens),
        ids={"bos": start, "eos": start + 2, "pad": start},
        flags={"add_bos_token": add_bos, "add_eos_token": add_eos},
        merges=tuple(" ".join(_cut(text, {*alphabet, *built})) for text in built),
    )


def ugm(*, add_bos: bool = False, add_eos: bool = True, add_space_prefix: bool = True) -> Vocabulary:
    """Unigram, as of T5: scores are log-probabilities."""
    tokens = [("<pad>", CONTROL, 0.0), ("</s>", CONTROL, 0.0), ("<unk>", UNKNOWN, 0.0), ("<s>", CONTROL, 0.0)]
    tokens += [("<|im_start|>", CONTROL, 0.0), ("<|im_end|>", CONTROL, 0.0)]
    tokens += [("<think>", USER, 0.0), ("<unused0>", UNUSED, 0.0)]
    built = _built(BLANK + LETTERS, *PAIRS, *WORDS, *(BLANK + word for word in WORDS))
    tokens += [(text, NORMAL, -10.0 / len(text) - rank / 1000) for rank, text in enumerate(built)]
    tokens += [("<0x0A>", BYTE, -20.0)]
    return Vocabulary(
        model="t5",
        tokens=tuple(tokens),
        ids={"pad": 0, "eos": 1, "unk": 2, "bos": 3},
        flags={"add_bos_token": add_bos, "add_eos_token": add_eos, "add_space_prefix": add_space_prefix},
    )


def wpm() -> Vocabulary:
    """WordPiece, as of BERT: GGUF marks the beginning of a word with U+2581, not its continuation with ``##``."""
    tokens = [("[PAD]", CONTROL, 0.0), ("[UNK]", UNKNOWN, 0.0), ("[CLS]", CONTROL, 0.0), ("[SEP]", CONTROL, 0.0)]
    tokens += [("[MASK]", CONTROL, 0.0), ("[unused0]", UNUSED, 0.0), ("[think]", USER, 0.0)]
    tokens += [(text, NORMAL, 0.0) for text in (*(BLANK + char for char in LETTERS.strip()), *LETTERS.strip())]
    tokens += [(text, NORMAL, 0.0) for text in (*(BLANK + word for word in WORDS), *PAIRS)]
    return Vocabulary(
        model="bert",
        tokens=tuple(tokens),
        ids={"pad": 0, "unk": 1, "bos": 2, "sep": 3, "mask": 4},
        flags={"add_bos_token": True, "add_sep_token": True},
    )


VOCABULARIES = {"spm": spm, "bpe": bpe, "ugm": ugm, "wpm": wpm}


@dataclass(frozen=True, slots=True)
class Model:
    """A tiny decoder with random weights."""

    vocabulary: Vocabulary
    arch: str = "llama"
    """llama, qwen2, qwen3, gemma2 or gemma3."""
    biases: tuple[str, ...] = ()
    """Which of q, k, v have biases; qwen2 has all."""
    tied: bool = True
    """Whether the head is the embedding matrix, so that the file has no ``output.weight``."""
    rope_freqs: np.ndarray | None = None
    """float32, half a head long: ``rope_freqs.weight`` of Llama 3.1 and later."""
    more: dict[str, np.ndarray] = field(default_factory=dict)
    """Tensors beyond those of the architecture."""
    without: tuple[str, ...] = ()
    """Tensors of the architecture that the file lacks."""
    chat_template: str | None = CHAT_TEMPLATE
    metadata: dict[str, int | float | str | bool] = field(default_factory=dict)
    """More keys; those of the architecture without their prefix begin with a dot: ``.rope.scaling.type``."""
    seed: int = 0

    layers: int = 2
    width: int = 64
    heads: int = 4
    kv_heads: int = 2
    hidden: int = 96
    context: int = 512
    rope_base: float = 10_000.0

    @property
    def head(self) -> int:
        """The width of one head."""
        return self.width // self.heads

    def tensors(self) -> dict[str, np.ndarray]:
        """Return the weights, matrices as float16, in llama.cpp's names and layout."""
        random = np.random.default_rng(self.seed)

        def matrix(rows: int, columns: int) -> np.ndarray:
            return (random.standard_normal((rows, columns)) / np.sqrt(columns)).astype(np.float16)

        def vector(length: int, mean: float) -> np.ndarray:
            return (mean + 0.2 * random.standard_normal(length)).astype(np.float32)

        q, kv = self.heads * self.head, self.kv_heads * self.head
        made = {"token_embd.weight": matrix(len(self.vocabulary), self.width) * np.float16(4)}
        for layer in range(self.layers):
            at = f"blk.{layer}."
            made |= {
                f"{at}attn_norm.weight": vector(self.width, 1),
                f"{at}attn_q.weight": matrix(q, self.width),
                f"{at}attn_k.weight": matrix(kv, self.width),
                f"{at}attn_v.weight": matrix(kv, self.width),
                f"{at}attn_output.weight": matrix(self.width, q),
                f"{at}ffn_norm.weight": vector(self.width, 1),
                f"{at}ffn_gate.weight": matrix(self.hidden, self.width),
                f"{at}ffn_up.weight": matrix(self.hidden, self.width),
                f"{at}ffn_down.weight": matrix(self.width, self.hidden),
            }
            for name in "qkv" if self.arch == "qwen2" else self.biases:
                made[f"{at}attn_{name}.bias"] = vector(q if name == "q" else kv, 0) * 5
            if self.arch in ("qwen3", "gemma3"):
                made |= {f"{at}attn_{name}_norm.weight": vector(self.head, 1) for name in "qk"}
            if self.arch in ("gemma2", "gemma3"):
                made |= {f"{at}post_{name}_norm.weight": vector(self.width, 1) for name in ("attention", "ffw")}
        made["output_norm.weight"] = vector(self.width, 1)
        if not self.tied:
            made["output.weight"] = matrix(len(self.vocabulary), self.width)
        if self.rope_freqs is not None:
            made["rope_freqs.weight"] = self.rope_freqs.astype(np.float32)
        made |= self.more
        return {name: tensor for name, tensor in made.items() if name not in self.without}

    def write(self, path: Path, *, tensors_per_part: int = 0) -> list[Path]:
        """Write the file, or with `tensors_per_part` files in parts; return their paths, the first part first.

        Parts are named as llama.cpp does: ``NAME-00001-of-00003.gguf``.
        """
        writer = GGUFWriter(path, self.arch, split_max_tensors=tensors_per_part)
        writer.add_context_length(self.context)
        writer.add_embedding_length(self.width)
        writer.add_block_count(self.layers)
        writer.add_feed_forward_length(self.hidden)
        writer.add_head_count(self.heads)
        writer.add_head_count_kv(self.kv_heads)
        writer.add_layer_norm_rms_eps(1e-6)
        writer.add_rope_freq_base(self.rope_base)
        if self.arch == "llama":
            writer.add_rope_dimension_count(self.head)
            writer.add_vocab_size(len(self.vocabulary))
        if self.arch in ("gemma2", "gemma3"):
            writer.add_key_length(self.head)
            writer.add_value_length(self.head)
            writer.add_sliding_window(16)
        if self.chat_template is not None:
            writer.add_chat_template(self.chat_template)
        for key, value in self.metadata.items():
            add = {
                bool: writer.add_bool,
                int: writer.add_uint32,
                float: writer.add_float32,
                str: writer.add_string,
            }
            add[type(value)](f"{self.arch}{key}" if key.startswith(".") else key, value)
        self.vocabulary.write(writer)
        for name, tensor in self.tensors().items():
            writer.add_tensor(name, tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        parts = sorted(path.parent.glob(f"{path.stem}-*-of-*.gguf"))
        return parts if tensors_per_part else [path]


def write_vocabulary(path: Path, vocabulary: Vocabulary, *, chat_template: str | None = CHAT_TEMPLATE) -> Path:
    """Write a file without weights, which llama.cpp opens with `vocab_only`."""
    writer = GGUFWriter(path, "llama")
    if chat_template is not None:
        writer.add_chat_template(chat_template)
    vocabulary.write(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def llama3_rope_freqs(
    head: int, *, base: float = 10_000.0, factor: float = 8.0, original: int = 8192
) -> np.ndarray:
    """Return what llama.cpp's converter writes as ``rope_freqs.weight`` for `rope_type` llama3 (low 1, high 4)."""
    wavelengths = 2 * np.pi * base ** (np.arange(0, head, 2) / head)
    smooth = (original / wavelengths - 1.0) / (4.0 - 1.0)
    between = 1 / ((1 - smooth) / factor + smooth)
    return np.where(
        wavelengths < original / 4.0, 1.0, np.where(wavelengths > original / 1.0, factor, between)
    ).astype(np.float32)


def _built(letters: str, *words: str) -> list[str]:
    """Return the letters, then every token on the way to each word, shorter ones first."""
    made = dict.fromkeys(letters)
    for word in words:
        made |= dict.fromkeys(word[:length] for length in range(2, len(word) + 1))
    return sorted(made, key=len)


def _cut(text: str, tokens: set[str]) -> tuple[str, str]:
    return next(
        (text[:at], text[at:]) for at in range(len(text) - 1, 0, -1) if text[:at] in tokens and text[at:] in tokens
    )


def _byte_letters() -> dict[int, str]:
    """How byte-level BPE writes each byte (GPT-2's `bytes_to_unicode`)."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {byte: chr(256 + at) for at, byte in enumerate(hidden)}
