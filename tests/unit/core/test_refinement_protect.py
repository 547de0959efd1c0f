"""What is protected, under the templates in use."""

import re

import pytest
from chat_templates import CHATML
from example_count import examples
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import Environment

from pdd_core.refinement.protect import TAIL, protected_spans, question_span, question_window

BOS = "<\uff5cbegin▁of▁sentence\uff5c>"
DOCUMENT = "First paragraph of it.\nThe key is 4829.\n\nSecond one."
QUESTION = "What is\nthe key?"
SYSTEM = "Be brief.\n\nTools: []"

SPECIAL = re.compile(
    r"<\|[\w ]+\|>|<\uff5c[^\uff5c]+\uff5c>|</?(?:s|bos|start_of_turn|end_of_turn)>"
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_RESULTS|TOOL_CALLS)\]"
)
TOKEN = re.compile(r" ?\w+|\n+|[^\S\n]+|.")


class Tokens:
    """A text as tokens: control tokens whole, of the rest words, newlines and single characters."""

    def __init__(self, text, special=SPECIAL):
        ids, self.pieces, specials, at = {}, [], set(), 0
        matches = list(special.finditer(text)) if special else []
        for match in [*matches, None]:
            self.pieces += TOKEN.findall(text[at : match.start() if match else len(text)])
            if match:
                self.pieces.append(match[0])
                specials.add(match[0])
                at = match.end()
        assert "".join(self.pieces) == text
        self.ids = [ids.setdefault(piece, len(ids)) for piece in self.pieces]
        self.special_ids = frozenset(ids[piece] for piece in specials)

    def kept(self, **options):
        """The prompt with a gap for each span that may be dropped."""
        spans = protected_spans(self.ids, self.pieces, self.special_ids, **options)
        assert list(spans) == sorted(spans)
        return " ~ ".join("".join(self.pieces[start:end]) for start, end in spans)

    def question(self, **options):
        start, end = question_span(self.ids, self.pieces, self.special_ids, **options)
        return "".join(self.pieces[start:end])

    def window(self, most=64):
        size = question_window(self.ids, self.pieces, self.special_ids, most=most)
        assert 0 <= size <= most
        return "".join(self.pieces[len(self.pieces) - size :])


def chatml(*messages, add_generation_prompt=True):
    template = Environment(keep_trailing_newline=True, autoescape=False).from_string(CHATML)  # noqa: S701
    turns = [{"role": role, "content": content} for role, content in messages]
    return template.render(messages=turns, add_generation_prompt=add_generation_prompt)


CHATS = {
    "chatml": (
        chatml(("system", SYSTEM), ("user", f"{DOCUMENT}\n\n{QUESTION}")),
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n ~ "
        f"{QUESTION}<|im_end|>\n<|im_start|>assistant\n",
    ),
    "no system prompt, no generation prompt": (
        chatml(("user", f"{DOCUMENT}\n\n{QUESTION}"), add_generation_prompt=False),
        f"<|im_start|>user\n ~ {QUESTION}<|im_end|>\n",
    ),
    "earlier turns": (
        chatml(("user", "Hello there."), ("assistant", "Hi.\n\nYou?"), ("user", f"{DOCUMENT}\n\n{QUESTION}")),
        "<|im_start|>user\n ~ <|im_end|>\n<|im_start|>assistant\n ~ <|im_end|>\n<|im_start|>user\n ~ "
        f"{QUESTION}<|im_end|>\n<|im_start|>assistant\n",
    ),
    "a system prompt between": (
        chatml(("user", "One."), ("system", SYSTEM), ("user", f"{DOCUMENT}\n\n{QUESTION}")),
        f"<|im_start|>user\n ~ <|im_end|>\n<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n ~ "
        f"{QUESTION}<|im_end|>\n<|im_start|>assistant\n",
    ),
    "an answer that is begun": (
        chatml(("user", f"{DOCUMENT}\n\n{QUESTION}")) + "The key\n\nis",
        f"<|im_start|>user\n ~ {QUESTION}<|im_end|>\n<|im_start|>assistant\nThe key\n\nis",
    ),
    "a role that nobody knows": (
        chatml(("user", f"{DOCUMENT}\n\n{QUESTION}"), ("narrator", "He said.\n\nSo.")),
        f"<|im_start|>user\n ~ {QUESTION}<|im_end|>\n<|im_start|>narrator\nHe said.\n\nSo.<|im_end|>\n"
        "<|im_start|>assistant\n",
    ),
    "an empty user turn": (
        chatml(("user", DOCUMENT), ("user", "")),
        "<|im_start|>user\n ~ <|im_end|>\n<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n",
    ),
    "no user turn": (
        chatml(("system", SYSTEM), ("assistant", "Hi.")),
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>assistant\n ~ <|im_end|>\n<|im_start|>assistant\n",
    ),
    "one paragraph": (
        chatml(("user", "Why is the sky blue?\nSay.")),
        "<|im_start|>user\nWhy is the sky blue?\nSay.<|im_end|>\n<|im_start|>assistant\n",
    ),
    "blank lines at the end": (
        chatml(("user", f"{DOCUMENT}\n \n{QUESTION}\n\n \n")),
        f"<|im_start|>user\n ~ {QUESTION}\n\n \n<|im_end|>\n<|im_start|>assistant\n",
    ),
    "an image in the question": (
        chatml(("user", f"{DOCUMENT}\n\n<|image|> what is this?")),
        "<|im_start|>user\n ~ <|image|> what is this?<|im_end|>\n<|im_start|>assistant\n",
    ),
    "a tool's result": (
        chatml(("user", QUESTION), ("assistant", "[search]"), ("tool", DOCUMENT)),
        f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n[search]<|im_end|>\n<|im_start|>tool\n ~ "
        "<|im_end|>\n<|im_start|>assistant\n",
    ),
    "a tool's result in the user's name": (
        chatml(
            ("user", QUESTION),
            ("user", f"<tool_response>\n{DOCUMENT}\n</tool_response>\n<tool_response>\nNo.\n</tool_response>"),
        ),
        f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>user\n<tool_response> ~ </tool_response> ~ "
        "<tool_response> ~ </tool_response><|im_end|>\n<|im_start|>assistant\n",
    ),
    "llama 3": (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        f"<|start_header_id|>user<|end_header_id|>\n\n{DOCUMENT}\n\n{QUESTION}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        f"<|start_header_id|>user<|end_header_id|>\n\n ~ {QUESTION}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "llama 3 with a tool": (
        f"<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{QUESTION}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n{}<|eot_id|>"
        f"<|start_header_id|>ipython<|end_header_id|>\n\n{DOCUMENT}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        f"<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{QUESTION}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n{}<|eot_id|>"
        "<|start_header_id|>ipython<|end_header_id|>\n\n ~ <|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "gemma": (
        f"<bos><start_of_turn>user\n{DOCUMENT}\n\n{QUESTION}<end_of_turn>\n<start_of_turn>model\n",
        f"<bos><start_of_turn>user\n ~ {QUESTION}<end_of_turn>\n<start_of_turn>model\n",
    ),
    "mistral": (
        f"<s>[SYSTEM_PROMPT]{SYSTEM}[/SYSTEM_PROMPT][AVAILABLE_TOOLS][{{}}][/AVAILABLE_TOOLS]"
        f"[INST] Hello.[/INST] Hi.</s>[INST] {DOCUMENT}\n\n{QUESTION}[/INST]",
        f"<s>[SYSTEM_PROMPT]{SYSTEM}[/SYSTEM_PROMPT][AVAILABLE_TOOLS][{{}}][/AVAILABLE_TOOLS]"
        f"[INST] ~ [/INST] ~ </s>[INST] ~ {QUESTION}[/INST]",
    ),
    "mistral with a tool": (
        f"<s>[INST] {QUESTION}[/INST][TOOL_CALLS][]</s>[TOOL_RESULTS]{DOCUMENT}[/TOOL_RESULTS]",
        f"<s>[INST] {QUESTION}[/INST][TOOL_CALLS][]</s>[TOOL_RESULTS] ~ [/TOOL_RESULTS]",
    ),
    "phi": (
        f"<|system|>\nBe brief.<|end|>\n<|user|>\n{DOCUMENT}\n\n{QUESTION}<|end|>\n<|assistant|>\n",
        f"<|system|>\nBe brief.<|end|>\n<|user|>\n ~ {QUESTION}<|end|>\n<|assistant|>\n",
    ),
    "deepseek": (
        f"{BOS}{SYSTEM}<\uff5cUser\uff5c>{DOCUMENT}\n\n{QUESTION}<\uff5cAssistant\uff5c>",
        f"{BOS}{SYSTEM}<\uff5cUser\uff5c> ~ {QUESTION}<\uff5cAssistant\uff5c>",
    ),
    "harmony": (
        "<|start|>developer<|message|>Be brief.<|end|>"
        "<|start|>assistant<|channel|>final<|message|>Hi.\n\nYou?<|end|>"
        f"<|start|>user<|message|>{DOCUMENT}\n\n{QUESTION}<|end|><|start|>assistant",
        "<|start|>developer<|message|>Be brief.<|end|><|start|>assistant<|channel|>final<|message|> ~ <|end|>"
        f"<|start|>user<|message|> ~ {QUESTION}<|end|><|start|>assistant",
    ),
    "only control tokens before a text": (
        f"<s>{DOCUMENT}\n\n{QUESTION}",
        f"<s> ~ {QUESTION}",
    ),
}


@pytest.mark.parametrize(("prompt", "kept"), CHATS.values(), ids=CHATS)
def test_template_system_prompt_and_question_are_protected_and_no_more(prompt, kept):
    assert Tokens(prompt).kept() == kept


@pytest.mark.parametrize("prompt", [prompt for prompt, kept in CHATS.values() if QUESTION in kept])
def test_the_question_is_found(prompt):
    assert Tokens(prompt).question().strip() == QUESTION


@pytest.mark.parametrize("prompt", [prompt for prompt, kept in CHATS.values() if QUESTION in kept])
def test_the_window_is_the_question_and_the_template_behind_it(prompt):
    asked = Tokens(prompt).window()
    assert asked.lstrip() == prompt[prompt.rindex(QUESTION) :]
    assert Tokens(DOCUMENT * 90 + prompt).window() == asked, "however long the prompt is"


def test_of_a_paragraph_that_is_more_than_a_question_the_last_sentences_are_the_window():
    text = "It is a text of words. " * 30
    asked = "What is the text a text of? Say it in one or two words."
    prompt = chatml(("user", f"{DOCUMENT}\n\n{text}{asked}"))
    assert Tokens(prompt).window() == prompt[prompt.index(" " + asked) :]
    short = chatml(("user", f"{DOCUMENT}\n\n{text}Of what?"))
    assert Tokens(short).window().startswith(" It is a text of words."), "two words say too little"
    assert Tokens(chatml(("user", "word " * 300))).window(most=32).startswith(" word" * 5)


def llama(*messages):
    turns = [f"<|start_header_id|>{role}<|end_header_id|>\n\n{text}<|eot_id|>" for role, text in messages]
    return f"<|begin_of_text|>{''.join(turns)}<|start_header_id|>assistant<|end_header_id|>\n\n"


LLAMA_TOOLS = (
    "Given the following functions, please respond with a JSON for a function call with its proper arguments that "
    "best answers the given prompt.\n\nRespond in the format "
    '{"name": function name, "parameters": dictionary of argument name and its value}.Do not use variables.\n\n'
    '{\n    "type": "function",\n    "function": {\n        "name": "weather",\n        "description": "\ufffd"\n'
    '    }\n}\n\n{"type": "function", "function": {"name": "time"}}\n\n'
)
"""How Llama 3.1's template puts tools into the first user turn, unless it is told otherwise."""


def test_tools_in_a_user_turn_are_protected():
    first = f'{LLAMA_TOOLS}{{"a": 1}}\n\n{DOCUMENT}'
    prompt = Tokens(
        llama(("system", SYSTEM), ("user", first), ("assistant", "Hi."), ("user", f"{DOCUMENT}\n\n{QUESTION}"))
    )
    before = f"<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{SYSTEM}<|eot_id|>"
    assert prompt.kept().startswith(
        f"{before}<|start_header_id|>user<|end_header_id|>\n\n{LLAMA_TOOLS.rstrip()} ~ <|eot_id|>"
    )
    assert DOCUMENT not in prompt.kept()


@pytest.mark.parametrize(
    ("tools", "whole"),
    [
        (LLAMA_TOOLS[:-30], True),  # the last one is cut
        (LLAMA_TOOLS.replace("Given the following", "Here are"), False),
        (LLAMA_TOOLS[: LLAMA_TOOLS.index("\n\n{")] + "\n\n", False),
        (f"Look: {LLAMA_TOOLS}", False),
    ],
)
def test_what_only_resembles_tools_in_a_user_turn_is_text(tools, whole):
    """But for the tools before the first that does."""
    kept = Tokens(llama(("user", f"{tools}{DOCUMENT}\n\n{QUESTION}"))).kept()
    assert '"time"' not in kept
    assert ("Respond in the format" in kept) is ('"weather"' in kept) is whole


def test_marks_that_are_text_count_if_no_control_token_has_a_role():
    prompt = f"<s>[INST] <<SYS>>\n{SYSTEM}\n<</SYS>>\n\n{DOCUMENT}\n\n{QUESTION} [/INST]"
    text = Tokens(prompt, special=re.compile("<s>"))
    assert text.kept() == f"<s>[INST] ~ <<SYS>>\n{SYSTEM}\n<</SYS>> ~ {QUESTION} [/INST]"
    assert text.question() == QUESTION
    chat = Tokens(chatml(("user", f"[INST] {DOCUMENT}\n\n{QUESTION}")), special=re.compile(r"<\|\w+\|>"))
    assert chat.kept().startswith("<|im_start|>user\n ~ What")


def test_without_control_tokens_the_first_token_and_the_last_paragraph_are_protected():
    text = Tokens(f"{DOCUMENT}\n\n{QUESTION}\n\n", special=None)
    assert text.kept() == f"First ~ {QUESTION}\n\n"
    assert text.question() == QUESTION


def test_what_looks_like_a_template_is_text_if_no_id_is_special():
    text = Tokens(chatml(("system", SYSTEM), ("user", QUESTION)))
    text.special_ids = frozenset()
    assert text.kept().startswith("<|im_start|> ~ Tools: []<|im_end|>\n<|im_start|>user\n")


def test_a_control_token_in_the_text_does_not_end_the_turn():
    text = Tokens(chatml(("user", f"One.<|image|>{DOCUMENT}\n\n{QUESTION}")))
    assert text.kept().startswith("<|im_start|>user\n ~ <|image|> ~ What is")


@pytest.mark.parametrize("special", [SPECIAL, None])
def test_of_a_long_question_the_end_is_protected(special):
    words = " ".join(f"w{number}" for number in range(200))
    text = Tokens(
        chatml(("user", f"{DOCUMENT}\n\n{words}")) if special else f"{DOCUMENT}\n\n{words}", special=special
    )
    spans = protected_spans(text.ids, text.pieces, text.special_ids)
    end = text.pieces.index(" w199") + 1
    assert spans[-1][0] == end - TAIL
    assert text.kept(tail=3).split(" ~ ")[-1].startswith(" w197 w198 w199")
    assert text.question(tail=3) == " w197 w198 w199"
    assert text.question(tail=0) == ""


def test_of_many_blanks_at_the_end_few_are_protected():
    text = Tokens(f"{DOCUMENT}\n\n{QUESTION}", special=None)
    text.pieces += ["\n"] * 500
    text.ids += [99] * 500
    spans = protected_spans(text.ids, text.pieces, text.special_ids)
    assert sum(end - start for start, end in spans) < TAIL + 20
    assert text.question() == QUESTION


def test_marked_spans_are_protected_as_far_as_there_is_a_prompt():
    text = Tokens(f"{DOCUMENT}\n\n{QUESTION}", special=None)
    key = text.pieces.index(" key")
    marked = [(key, key + 3), (1000, 2000), (-5, 0)]
    assert text.kept(marked=marked) == f"First ~  key is 4829 ~ {QUESTION}"


@pytest.mark.parametrize(("ids", "spans"), [([], ()), ([7], ((0, 1),)), ([7, 8], ((0, 2),))])
@pytest.mark.parametrize("special_ids", [frozenset(), frozenset({7}), frozenset({7, 8})])
def test_tiny_prompts(ids, spans, special_ids):
    assert protected_spans(ids, ["a"] * len(ids), special_ids) == spans


parts = st.sampled_from(
    [
        *(
            "<|im_start|>",
            "<|im_end|>",
            "[INST]",
            "[/INST]",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<<SYS>>",
        ),
        *(
            "user",
            "system",
            "tool",
            "assistant",
            "\n",
            "\n\n",
            " ",
            "",
            "word",
            " more",
            "<tool_response>",
            "[",
            "INST",
        ),
    ]
)


@examples(300)
@given(pieces=st.lists(parts, max_size=60), tail=st.integers(0, 10), data=st.data())
def test_any_prompt_has_its_control_tokens_both_ends_and_marks_protected(pieces, tail, data):
    ids = [sorted(set(pieces)).index(piece) for piece in pieces]
    special_ids = frozenset(data.draw(st.sets(st.sampled_from(ids)))) if ids else frozenset()
    marked = data.draw(st.lists(st.tuples(st.integers(0, 70), st.integers(0, 70)), max_size=3))
    spans = protected_spans(ids, pieces, special_ids, marked=marked, tail=tail)
    protected = {index for start, end in spans for index in range(start, end)}
    bounds = [bound for span in spans for bound in span]
    assert bounds == sorted(set(bounds))
    assert protected <= set(range(len(ids)))
    assert 0 <= question_window(ids, pieces, special_ids, most=tail) <= min(tail, len(ids))
    wanted = {index for start, end in marked for index in range(start, end)} & set(range(len(ids)))
    assert wanted | {index for index, token in enumerate(ids) if token in special_ids} <= protected
    assert not ids or {0, len(ids) - 1} <= protected
    start, end = question_span(ids, pieces, special_ids, tail=tail)
    assert 0 <= start <= end <= len(ids)
    assert end - start <= tail
    assert set(range(start, end)) <= protected
