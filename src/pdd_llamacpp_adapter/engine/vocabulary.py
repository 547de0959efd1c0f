"""The model's tokens: text to ids, ids to text, and the table of bytes that the cloud's is compared with.

llama.cpp's vocabulary never changes once loaded, so these calls need not be made on the engine's thread.
"""

from __future__ import annotations

import ctypes
from functools import cached_property
from typing import TYPE_CHECKING, Any

import llama_cpp.llama_cpp as L  # noqa: N812 - the usual short name of the C functions

from pdd_core.errors import InvalidRequest, ModelError
from pdd_core.fingerprint import literal_bytes
from pdd_llamacpp_adapter.engine.chat_template import ChatTemplate
from pdd_llamacpp_adapter.engine.control_texts import BRACKET, ControlTexts
from pdd_llamacpp_adapter.engine.detokenizer import Detokenizer
from pdd_llamacpp_adapter.engine.shared_model import SharedModel, keeps_model
from pdd_llamacpp_adapter.request import context_overflow

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_PIECE_BYTES = 256
_LITERAL = L.LLAMA_TOKEN_ATTR_CONTROL | L.LLAMA_TOKEN_ATTR_USER_DEFINED | L.LLAMA_TOKEN_ATTR_UNKNOWN
"""Tokens whose text stands for itself, and is not spelt in the vocabulary's own way."""


class Vocabulary:
    """The tokens of one loaded model. Invalid once its engine is closed, and says so.

    Every call keeps the model until it returns: closing the engine does not wait for one that takes long.
    """

    def __init__(self, model: SharedModel, *, chat_template: str | None = None) -> None:
        """Read `model`'s; `chat_template` stands in the place of its own, where there is one."""
        self._model = model
        self._template = chat_template
        self._handle = L.llama_model_get_vocab(model.handle)
        self._pieces: dict[int, bytes] = {}
        self.size = int(L.llama_vocab_n_tokens(self._handle))
        self.bos_id = int(L.llama_vocab_bos(self._handle))
        """-1 when the model has none."""
        self.eos_id = int(L.llama_vocab_eos(self._handle))
        """-1 when the model has none."""
        infill = (L.llama_vocab_fim_pre, L.llama_vocab_fim_suf, L.llama_vocab_fim_mid)
        marks = tuple(int(token_of(self._handle)) for token_of in infill)
        self.infill_ids = marks if min(marks) >= 0 else None
        """The tokens before a text with a gap, behind the gap, and before what fills it; or None."""
        self._adds_bos = bool(L.llama_vocab_get_add_bos(self._handle))

    @cached_property
    @keeps_model
    def raw_tokens(self) -> list[str]:
        """Raw token string per id, as in ``tokenizer.ggml.tokens``. About 40 ms for 50,000, once."""
        vocab = self._vocab
        return [L.llama_vocab_get_text(vocab, token).decode("utf-8", "replace") for token in range(self.size)]

    @cached_property
    @keeps_model
    def stop_ids(self) -> frozenset[int]:
        """What ends an answer in llama.cpp's own programs: ends of sequence, of turn, of message, and their like.

        A cloud may have another idea of it: `session.stop_ids` decides.
        """
        return frozenset(token for token in range(self.size) if L.llama_vocab_is_eog(self._vocab, token))

    @cached_property
    @keeps_model
    def token_bytes(self) -> list[bytes]:
        """What each token means, as in `pdd_core.fingerprint`. About 0.7 s for 262,144, once."""
        plain = L.LLAMA_TOKEN_ATTR_NORMAL | L.LLAMA_TOKEN_ATTR_BYTE
        is_words = L.llama_vocab_type(self._vocab) == L.LLAMA_VOCAB_TYPE_WPM
        made = []
        for token, raw in enumerate(self.raw_tokens):
            marks = L.llama_vocab_get_attr(self._vocab, token)
            if marks & plain and not marks & _LITERAL:
                made.append(self._bytes_of(token))
            else:
                # converters of WordPiece mark a word's beginning even in front of a user-defined token
                made.append(literal_bytes(raw).removeprefix(b" ") if is_words else literal_bytes(raw))
        return made

    @keeps_model
    def is_special(self, token_id: int) -> bool:
        """Whether `token_id` is a control, user-defined or unknown token, as opposed to ordinary text."""
        return 0 <= token_id < self.size and bool(L.llama_vocab_get_attr(self._vocab, token_id) & _LITERAL)

    @cached_property
    @keeps_model
    def longest_piece(self) -> int:
        """Bytes of text in the longest token."""
        # byte-level BPE writes each byte as one character
        is_bpe = L.llama_vocab_type(self._vocab) == L.LLAMA_VOCAB_TYPE_BPE
        return max(len(text) if is_bpe else len(text.encode()) for text in self.raw_tokens)

    @keeps_model
    def tokenize(
        self, text: str, *, special: bool = False, add_bos: bool = False, most: int | None = None
    ) -> list[int]:
        """Split `text` into ids.

        Args:
            text: what to split.
            special: read ``<|im_end|>`` and the like as tokens. Only for text that no user wrote.
            add_bos: begin with the model's beginning-of-sequence token, if it wants one.
            most: tokens that there may be. A text that must have more is refused unread.

        Raises:
            ContextOverflow: `text` has more tokens than `most`, whatever they are.
            InvalidRequest: `text` is not Unicode: it has half of a surrogate pair.
        """
        try:
            length = len(text.encode())
        except UnicodeEncodeError as error:
            raise InvalidRequest(f"the prompt is not Unicode: {error.reason}") from error
        if most is not None and length > most * self.longest_piece:
            least = -(-length // self.longest_piece)
            raise context_overflow(
                most, f"the prompt is too long: its {length} bytes have at least {least} tokens"
            )
        if not special or (add_bos and not self._only_begins):
            return self._ids(text, special=special, add_bos=add_bos)
        if most is not None:
            self.control_texts.check(text, most=most)
        ids: list[int] = []
        for number, piece in enumerate(self.control_texts.cut(text)):
            ids += self._ids(piece, special=True, add_bos=add_bos and number == 0)
        return ids

    @cached_property
    def control_texts(self) -> ControlTexts:
        """The tokens that llama.cpp reads as such in a text, as far as they have brackets."""
        strips = L.LLAMA_TOKEN_ATTR_LSTRIP
        return ControlTexts(
            {
                text: not L.llama_vocab_get_attr(self._vocab, token) & strips
                for token, text in enumerate(self.raw_tokens)
                if BRACKET.search(text) and self.is_special(token)
            }
        )

    @cached_property
    def _only_begins(self) -> bool:
        """Whether llama.cpp, told to add what a prompt begins with, adds nothing to its end."""
        return self._ids("", special=True, add_bos=True) in ([], [self.bos_id])

    def _ids(self, text: str, *, special: bool, add_bos: bool) -> list[int]:
        data = text.encode()
        room = len(data) + 2
        while True:
            ids = (L.llama_token * room)()
            count = L.llama_tokenize(self._vocab, data, len(data), ids, room, add_bos, special)
            if count >= 0:
                return list(ids[:count])
            room = -count

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        most: int | None = None,
        add_special_tokens: bool | None = None,
        **rendering: Any,
    ) -> list[int]:
        """Return the prompt of a chat, by the model's own template, ready for the assistant's turn.

        Args:
            messages: OpenAI's chat messages.
            tools: OpenAI's function tools, for a template that reads them (`ChatTemplate.supports_tools`).
            most: as in `tokenize`.
            add_special_tokens: whether to add what the vocabulary begins a text with, besides what the template
                writes; None adds it where the template does not write it.
            rendering: what else `ChatTemplate.render` takes, such as the template's variable `enable_thinking`.

        Raises:
            ModelError: the model has no chat template.
            InvalidRequest: the template refuses these messages.
            ContextOverflow: as from `tokenize`.
        """
        text = self.chat_template.render(messages, tools=tools, **rendering)
        if add_special_tokens is None:
            add_special_tokens = not (self.chat_template.bos and text.startswith(self.chat_template.bos))
        return self.tokenize(text, special=True, add_bos=self._adds_bos and add_special_tokens, most=most)

    @cached_property
    @keeps_model
    def chat_template(self) -> ChatTemplate:
        """The model's chat template: its own, or the one given.

        Raises:
            ModelError: there is none, or it is not valid Jinja.
        """
        template = L.llama_model_chat_template(self._model.handle, None)
        try:
            text = self._template or (template.decode("utf-8") if template else None)
        except UnicodeDecodeError as error:
            raise ModelError(f"the model's chat template is not UTF-8: {error.reason}") from error
        return ChatTemplate(text, bos=self._raw(self.bos_id), eos=self._raw(self.eos_id))

    def detokenizer(self) -> Detokenizer:
        """Return the detokenizer of one answer."""
        return Detokenizer(self.piece)

    def piece(self, token_id: int) -> bytes:
        """Return the bytes that `token_id` adds to the text; none for control tokens."""
        if token_id not in self._pieces:
            self._pieces[token_id] = self._read_piece(token_id)
        return self._pieces[token_id]

    def spelt(self, token_id: int) -> str:
        """Return the text of `token_id` as it is in a prompt, control tokens spelt out.

        Of a part of a character, a replacement character.
        """
        if 0 <= token_id < self.size and self.is_special(token_id):
            return self.raw_tokens[token_id]
        return self.piece(token_id).decode("utf-8", "replace")

    @keeps_model
    def _read_piece(self, token_id: int) -> bytes:
        if not 0 <= token_id < self.size:
            return b""  # padding beyond the table has no text
        return self._bytes_of(token_id)

    def _bytes_of(self, token_id: int) -> bytes:
        """Return the bytes of a token of the table, none of a control token."""
        room = _PIECE_BYTES
        while True:
            buffer = ctypes.create_string_buffer(room)
            count = L.llama_token_to_piece(self._vocab, token_id, buffer, room, 0, False)
            if count >= 0:
                return buffer.raw[:count]
            room = -count

    def _raw(self, token_id: int) -> str:
        return self.raw_tokens[token_id] if token_id >= 0 else ""

    @property
    def _vocab(self) -> Any:
        self._model.check_open()
        return self._handle
