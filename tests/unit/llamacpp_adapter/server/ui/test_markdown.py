"""Markdown as the chat page renders it, in a real browser."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

PROGRAM = """async (answers) => {
  const { render } = await import('/ui/markdown.js');
  return answers.map((answer) => {
    const body = document.createElement('div');
    body.append(render(answer));
    const all = (selector) => [...body.querySelectorAll(selector)];
    return {
      markup: body.innerHTML,
      tags: all('*').map((one) => one.tagName.toLowerCase()),
      by: ['cloud', 'device'].map((maker) => all('span.' + maker).map((one) => one.textContent).join('')),
    };
  });
}"""
TAGS = {*("p", "span", "em", "strong", "del", "code", "pre", "a", "ul", "ol", "li", "blockquote", "hr"),
        *("h3", "h4", "h5", "h6", "div", "table", "tr", "th", "td")}  # fmt: skip
BLANK = 'target="_blank" rel="noopener noreferrer"'


@pytest.fixture
def rendered(visit, service):
    page = visit(service()).open()
    return lambda *answers: page.evaluate(PROGRAM, list(answers))


def plain(text):
    return {"text": text, "by": "-" * len(text)}


@pytest.mark.parametrize(
    ("text", "markup"),
    [
        ("one\ntwo\n\nthree", "<p>one\ntwo</p><p>three</p>"),
        ("# A *b*\n## B ##\nc", "<h3>A <em>b</em></h3><h4>B</h4><p>c</p>"),
        ("a **b _c_** ~~d~~ 2 * 3 a_b_c", "<p>a <strong>b <em>c</em></strong> <del>d</del> 2 * 3 a_b_c</p>"),
        ("***both***", "<p><strong><em>both</em></strong></p>"),
        ("`a *b*` ``c`d`` `open", "<p><code>a *b*</code> <code>c`d</code> `open</p>"),
        (r"\*no\* \a", r"<p>*no* \a</p>"),
        (
            "```py\nif a < b:\n    # c\n```\nd",
            '<pre tabindex="0"><code data-language="py">if a &lt; b:\n    # c</code></pre><p>d</p>',
        ),
        ("```\nstill coming", '<pre tabindex="0"><code>still coming</code></pre>'),
        (
            "- a\n- b\n  1. c\n  2. d\n\n- e",
            '<ul><li><p>a</p></li><li><p>b</p><ol start="1"><li><p>c</p></li><li><p>d</p></li></ol></li>'
            "<li><p>e</p></li></ul>",
        ),
        ("3. a\nlazy\n\nb", '<ol start="3"><li><p>a\nlazy</p></li></ol><p>b</p>'),
        ("1. a\n\n   b\n2. c", '<ol start="1"><li><p>a</p><p>b</p></li><li><p>c</p></li></ol>'),
        ("> a\n> > b", "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote>"),
        ("a\n***\nb", "<p>a</p><hr><p>b</p>"),
        (
            "| a | b |\n|---|:-:|\n| *c* | d |\ne",
            '<div class="wide" tabindex="0"><table><tr><th> a </th><th> b </th></tr>'
            "<tr><td> <em>c</em> </td><td> d </td></tr></table></div><p>e</p>",
        ),
        ("[a](https://x.example/b)", f'<p><a href="https://x.example/b" {BLANK}>a</a></p>'),
        ("see http://x.example/b.", f'<p>see <a href="http://x.example/b" {BLANK}>http://x.example/b</a>.</p>'),
        ("[a](javascript:b) [c](/d)", "<p>[a](javascript:b) [c](/d)</p>"),
        ("<b>&amp;", "<p>&lt;b&gt;&amp;amp;</p>"),
    ],
)  # fmt: skip
def test_markdown_becomes_nodes(rendered, text, markup):
    assert rendered(plain(text))[0]["markup"] == markup


def test_each_maker_s_text_is_marked_and_so_is_where_the_other_goes_on(rendered):
    said = "the device goes on here"
    over = f'<span class="over" role="img" aria-label="{said}" title="{said}"></span>'
    (made,) = rendered({"text": "a **bc** d", "by": "cccccddddd"})
    assert made["markup"] == (
        '<p><span class="cloud">a </span><strong><span class="cloud">b</span>'
        f'{over}<span class="device">c</span></strong><span class="device"> d</span></p>'
    )


def test_whatever_comes_only_known_elements_are_made_and_no_character_changes_its_maker(rendered):
    pieces = st.sampled_from([*"xy*_~`[]()!#>-+1.|\\\n <", "    ", "**", "```", "http://x.y/", "- ", "1. ", "|-|"])

    @given(st.lists(st.lists(pieces, max_size=60).map("".join), min_size=1, max_size=20))
    def holds(texts):
        # x is the cloud's, y the device's, and so is what follows each
        answers = []
        for text in texts:
            by, last = [], "c"
            for sign in text:
                last = {"x": "c", "y": "d"}.get(sign, last)
                by.append(last)
            answers.append({"text": text, "by": "".join(by)})
        for text, made in zip(texts, rendered(*answers), strict=True):
            assert set(made["tags"]) <= TAGS
            cloud, device = made["by"]
            assert "y" not in cloud
            assert "x" not in device
            # of letters, none is lost but in an address behind a link's words, or a language's name
            if "](" not in text and "`" not in text and "~" not in text:
                assert (cloud.count("x"), device.count("y")) == (text.count("x"), text.count("y"))

    holds()


@pytest.mark.parametrize("piece", ["*", "`", "[", "**a", "> ", "- ", "`a``"])
def test_no_text_takes_long(rendered, piece):
    rendered(plain(piece * (18_000 // len(piece))))  # a browser that hangs fails by the test's time limit
