"""What a token means, by its tokenizer's decoder. Real decoders: tests/integration/device/test_vocabularies.py."""

import json
from types import SimpleNamespace

import pytest

from pdd_vllm_plugin.token_bytes import TokenBytes

BYTE_LEVEL = [{"type": "ByteLevel", "add_prefix_space": True}]
SENTENCES = [{"type": "Replace", "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]
WORDS = [{"type": "WordPiece", "prefix": "##"}]


class Tokenizer:
    def __init__(self, decoders, words, *, added=(), special=()):
        self._vocabulary = {word: token for token, word in enumerate(words) if word is not None}
        self._added = [*added, *special]
        self.all_special_ids = [self._vocabulary[word] for word in special]
        if decoders is not None:
            state = decoders[0] if len(decoders) == 1 else {"type": "Sequence", "decoders": decoders}
            decoder = SimpleNamespace(__getstate__=lambda: json.dumps(state).encode())
            self.backend_tokenizer = SimpleNamespace(decoder=decoder)

    def get_vocab(self):
        return self._vocabulary

    def get_added_vocab(self):
        return {word: self._vocabulary[word] for word in self._added}


@pytest.mark.parametrize(
    ("decoders", "words", "added", "means"),
    [
        (BYTE_LEVEL, ["Ġthe", "Ċ", "Ã©", "Ã", "<0x0A>", "漢"], [], [" the", "\n", "é", b"\xc3", "<0x0A>", "漢"]),
        (BYTE_LEVEL, ["é", "<|é▁|>"], ["<|é▁|>"], [b"\xe9", "<|é |>"]),
        (SENTENCES, ["▁the", "<0x0A>", "<0xc3>", "Ġ", "▁▁"], ["▁▁"], [" the", "\n", b"\xc3", "Ġ", "  "]),
        (SENTENCES, ["<0x0A>"], ["<0x0A>"], ["<0x0A>"]),
        (SENTENCES[:1], ["▁a", "<0x0A>"], [], [" a", "<0x0A>"]),
        (WORDS, ["the", "##ir", "[think]"], ["[think]"], [" the", "ir", "[think]"]),
        (None, ["Ċ", "Ġa"], [], ["\n", " a"]),
        (None, ["▁a", "<0x0A>"], [], [" a", "\n"]),
        (SENTENCES, ["a", None, "b"], [], ["a", None, "b"]),
        (SENTENCES, [], [], []),
    ],
)
def test_a_token_means_what_its_decoder_makes_of_it(decoders, words, added, means):
    expected = [one.encode() if isinstance(one, str) else one for one in means]
    assert TokenBytes(Tokenizer(decoders, words, added=added)).table() == expected


def test_a_control_token_means_its_own_text():
    assert TokenBytes(Tokenizer(BYTE_LEVEL, ["é"], special=["é"])).table() == ["é".encode()]
