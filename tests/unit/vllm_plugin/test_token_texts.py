from types import SimpleNamespace

from pdd_vllm_plugin.token_texts import TokenTexts


class Tokenizer:
    def __init__(self, words, special=(), added=()):
        self.words = words
        self.all_special_ids = list(special)
        self.added_tokens_decoder = {token: SimpleNamespace(special=True) for token in added}
        self.asked = []

    def convert_ids_to_tokens(self, ids):
        self.asked += ids
        return [self.words[token] for token in ids]

    def get_vocab(self):
        return {word: token for token, word in enumerate(self.words) if word is not None}

    def get_added_vocab(self):
        return {self.words[token]: token for token in [*self.all_special_ids, *self.added_tokens_decoder]}


def test_a_byte_level_vocabulary():
    tokenizer = Tokenizer(["<|im_end|>", "Ġthe", "Ċ", "Ã©", "Ã", "a"], special=[0])
    assert TokenTexts(tokenizer).of([0, 1, 2, 3, 4, 5]) == ("<|im_end|>", " the", "\n", "é", "\ufffd", "a")


def test_a_sentencepiece_vocabulary():
    tokenizer = Tokenizer(["<s>", "▁the", "<0x0A>", "end"], special=[0])
    assert TokenTexts(tokenizer).of([0, 1, 2, 3]) == ("<s>", " the", "\n", "end")


def test_template_marks_count_as_special_where_the_tokenizer_lists_only_bos_and_eos():
    pieces = TokenTexts(Tokenizer(["<|begin_of_text|>", "<|eot_id|>", "Ċ"], special=[0], added=[1]))
    assert pieces.special_ids == {0, 1}
    assert pieces.of([1]) == ("<|eot_id|>",)


def test_each_token_is_looked_up_once():
    tokenizer = Tokenizer(["a", "b"])
    pieces = TokenTexts(tokenizer)
    pieces.of([0, 1, 0])
    pieces.of([1, 0])
    assert sorted(tokenizer.asked) == [0, 1]


def test_an_id_without_a_token_is_nothing():
    assert TokenTexts(Tokenizer(["a", None])).of([0, 1]) == ("a", "")
