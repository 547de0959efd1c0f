"""The model's tokens: text to ids, ids to text, and the raw table that the cloud's is compared with.

llama.cpp's vocabulary never changes once loaded, so these calls need not be made on the engine's thread.
"""

from __future__ import annotations

import ctypes
from functools import cached_property
from typing import TYPE_CHECKING, Any

import llama_cpp.llama_cpp as L  # noqa: N812 - the usual short name of the C functions

from pdd_core.errors import InvalidRequest
from pdd_llamacpp_adapter.engine.chat_template import ChatTemplate
from pdd_llamacpp_adapter.engine.control_texts import BRACKET, ControlTexts
from pdd_llamacpp_adapter.engine.detokenizer import Detokenizer
from pdd_llamacpp_adapter.engine.shared_model import SharedModel, keeps_model
from pdd_llamacpp_adapter.request import context_overflow

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_PIECE_BYTES = 256


class Vocabulary:
    """The tokens of one loaded model. Invalid once its engine is closed, and says so.

    Every call keeps the model until it returns: closing the engine does not wait for one that takes long.
    """

    def __init__(self, model: SharedModel) -> None:
        self._model = model
        self._handle = L.llama_model_get_vocab(model.handle)
        self._pieces: dict[int, bytes] = {}
        self.size = int(L.llama_vocab_n_tokens(self._handle))
        self.bos_id = int(L.llama_vocab_bos(self._handle))
        """-1 when the model has none."""
        self.eos_id = int(L.llama_vocab_eos(self._handle))
        """-1 when the model has none."""
        ends = (self.eos_id, int(L.llama_vocab_eot(self._handle)))
        self.stop_ids = frozenset(token for token in ends if token >= 0)
        """End of sequence and end of turn. Not llama.cpp's wider guess of end-of-generation tokens, which ends
        answers that vLLM would go on with."""
        self._adds_bos = bool(L.llama_vocab_get_add_bos(self._handle))

    @cached_property
    @keeps_model
    def raw_tokens(self) -> list[str]:
        """Raw token string per id, as in ``tokenizer.ggml.tokens``. About 40 ms for 50,000, once."""
        vocab = self._vocab
        return [L.llama_vocab_get_text(vocab, token).decode("utf-8", "replace") for token in range(self.size)]

    @keeps_model
    def is_special(self, token_id: int) -> bool:
        """Whether `token_id` is a control, user-defined or unknown token, as opposed to ordinary text."""
        marks = L.LLAMA_TOKEN_ATTR_CONTROL | L.LLAMA_TOKEN_ATTR_USER_DEFINED | L.LLAMA_TOKEN_ATTR_UNKNOWN
        return 0 <= token_id < self.size and bool(L.llama_vocab_get_attr(self._vocab, token_id) & marks)

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
        **template_variables: Any,
    ) -> list[int]:
        """Return the prompt of a chat, by the model's own template, ready for the assistant's turn.

        Args:
            messages: OpenAI's chat messages.
            tools: OpenAI's function tools, for a template that reads them (`ChatTemplate.supports_tools`).
            most: as in `tokenize`.
            template_variables: what else the template reads, such as `enable_thinking`.

        Raises:
            ModelError: the model has no chat template.
            InvalidRequest: the template refuses these messages.
            ContextOverflow: as from `tokenize`.
        """
        text = self.chat_template.render(messages, tools=tools, **template_variables)
        begun = bool(self.chat_template.bos) and text.startswith(self.chat_template.bos)
        return self.tokenize(text, special=True, add_bos=self._adds_bos and not begun, most=most)

    @cached_property
    @keeps_model
    def chat_template(self) -> ChatTemplate:
        """The model's own chat template.

        Raises:
            ModelError: there is none, or it is not valid Jinja.
        """
        template = L.llama_model_chat_template(self._model.handle, None)
        text = template.decode("utf-8") if template else None
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
