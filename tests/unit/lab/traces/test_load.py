import json

import numpy as np
import pytest
from example_count import examples
from hypothesis import given
from hypothesis import strategies as st

from pdd_core.errors import InvalidTrace
from pdd_lab.traces import FORMATS, load
from pdd_lab.traces.formats import AzureCSV

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
BURST = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"


@pytest.fixture
def write(tmp_path):
    def write(text, name="trace"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def test_azure_csv(write):
    trace = load(write(AZURE + "2023-11-16 18:17:03.9799600,4808,10\n2023-11-16 18:17:04.0319600,3180,8\n"))
    assert trace.arrival_s.tolist() == pytest.approx([0, 0.052])
    assert trace.prompt_tokens.tolist() == [4808, 3180]
    assert trace.output_tokens.tolist() == [10, 8]
    assert (len(trace), trace.dropped, trace.group(0), trace.hashes(1).tolist()) == (2, 0, "", [])


def test_azure_csv_with_an_offset_without_decimals_and_with_windows_line_ends(write):
    trace = load(
        write("\ufeff" + AZURE.strip() + "\r\n2024-05-10 00:00:00+00:00,1,2\r\n2024-05-11 00:00:00.5+00:00,3,4")
    )
    assert trace.arrival_s.tolist() == [0, 86400.5]
    assert trace.output_tokens.tolist() == [2, 4]


def test_mooncake_keeps_its_hash_blocks(write):
    rows = [
        {"timestamp": 1000, "input_length": 1025, "output_length": 3, "hash_ids": [7, 8, 9]},
        {"timestamp": 3500, "input_length": 20, "output_length": 1, "hash_ids": []},
        {"timestamp": 3500, "input_length": 513, "output_length": 1, "hash_ids": [7, 11]},
    ]
    trace = load(write("".join(json.dumps(row) + "\n" for row in rows)))
    assert trace.arrival_s.tolist() == [0, 2.5, 2.5]
    assert [trace.hashes(index).tolist() for index in range(3)] == [[7, 8, 9], [], [7, 11]]
    assert trace.block_tokens == 512
    assert trace.first(2).hashes(0).tolist() == [7, 8, 9]


def test_burstgpt_has_groups_and_sessions(write):
    trace = load(
        write(
            BURST
            + "5,,,ChatGPT,472,18,490,API log\n7.5,b,1.2,GPT-4,10,20,30,Conversation log\n"
            + "9,b,1.2,ChatGPT,10,20,30,Conversation log\n"
        )
    )
    assert trace.arrival_s.tolist() == [0, 2.5, 4]
    assert [trace.group(index) for index in range(3)] == ["ChatGPT", "GPT-4", "ChatGPT"]
    assert trace.sessions[0] == -1
    assert trace.sessions[1] == trace.sessions[2] >= 0


def test_burstgpt_without_sessions(write):
    trace = load(
        write("Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,M,4,1,5,API log\n")
    )
    assert (len(trace), len(trace.sessions), trace.group(0)) == (1, 0, "M")


def test_our_own_lines_may_lack_what_is_optional(write):
    rows = [
        {"arrival_s": 3, "prompt_tokens": 40, "output_tokens": 5},
        {"arrival_s": 1.5, "prompt_tokens": 40, "output_tokens": 6, "prefix_hashes": [-5, 6], "block_tokens": 32},
        {"arrival_s": 2, "prompt_tokens": 9, "output_tokens": 7, "group": "mail", "session": "s", "note": "more"},
    ]
    rows[0]["block_tokens"] = rows[2]["block_tokens"] = 32
    trace = load(write("".join(json.dumps(row) + "\n" for row in rows)))
    assert trace.output_tokens.tolist() == [6, 7, 5], "in the order of arrival"
    assert trace.arrival_s.tolist() == [0, 0.5, 1.5]
    assert [trace.hashes(index).tolist() for index in range(3)] == [[-5, 6], [], []]
    assert trace.block_tokens == 32
    assert [trace.group(index) for index in range(3)] == ["", "mail", ""]
    assert trace.sessions.tolist()[0] == trace.sessions.tolist()[2] == -1


def test_requests_without_tokens_are_left_out_and_counted(write):
    trace = load(write(BURST + "5,,,M,472,0,490,API log\n6,,,M,0,3,3,API log\n8,,,M,1,3,4,API log\n"))
    assert (len(trace), trace.dropped, trace.arrival_s.tolist()) == (1, 2, [0])


def test_empty_lines_do_not_matter(write):
    assert len(load(write(AZURE + "2023-11-16 18:17:03,1,2\n\n2023-11-16 18:17:04,1,2\n\n\n"))) == 2


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        (AZURE + "2023-11-16 18:17:03.9,1,2\n2023-11-16 18:17:04,1,2x\n", 3, "GeneratedTokens is '2x'"),
        (AZURE + "2023-11-16 18:17:03.9,1,2\n\n2023-11-16 18:17:04,1\n", 4, "2 fields where the header has 3"),
        (AZURE + "2023-11-16 18:17:03.9,1,2,3\n", 2, "4 fields where the header has 3"),
        (AZURE + "yesterday,1,2\n", 2, "TIMESTAMP is 'yesterday'"),
        (AZURE + "2023-11-16 18:17:03.9,-1,2\n", 2, "ContextTokens is -1"),
        (AZURE + "2023-11-16 18:17:03.9,99999999999,2\n", 2, "ContextTokens is 99999999999"),
        (AZURE + "2023-11-16 18:17:03.9,,2\n", 2, "ContextTokens is ''"),
        (BURST + "x,,,M,4,0,4,API log\n", 2, "Timestamp is 'x', not a number"),
        (BURST + "nan,,,M,4,0,4,API log\n", 2, "Timestamp is 'nan', not a number"),
        ('{"timestamp": 1, "input_length": 1, "output_length": 2}\n[1]\n', 2, "not a JSON object"),
        ('{"timestamp": 1, "input_length": 1, "output_length": 2}\n{"timestamp": 1,\n', 2, "not JSON"),
        ('{"timestamp": 1, "input_length": 1}\n', 1, "output_length is missing"),
        ('{"timestamp": "x", "input_length": 1, "output_length": 2}\n', 1, "timestamp is 'x'"),
        ('{"timestamp": 1, "input_length": 1.5, "output_length": 2}\n', 1, "input_length is 1.5"),
        (
            '{"timestamp": 1, "input_length": 1, "output_length": 2, "hash_ids": ["a"]}\n',
            1,
            "hash_ids is not a list",
        ),
        ('{"timestamp": 1, "input_length": 512, "output_length": 2, "hash_ids": [1, 2]}\n', 1, "2 blocks of 512"),
        ('{"arrival_s": 1, "prompt_tokens": 1, "output_tokens": true}\n', 1, "output_tokens is True"),
        ('{"timestamp": 1, "input_length": "600", "output_length": 2}\n', 1, "input_length is '600'"),
        ('{"timestamp": "1", "input_length": 600, "output_length": 2}\n', 1, "timestamp is '1'"),
        ('{"timestamp": true, "input_length": 600, "output_length": 2}\n', 1, "timestamp is True"),
        ('{"timestamp": 1e300, "input_length": 600, "output_length": 2}\n', 1, "timestamp is 1e+300"),
        ('{"timestamp": 1, "input_length": 1, "output_length": 2, "x": ' + "[" * 9999 + "\n", 1, "not JSON"),
        ('{"arrival_s": 1, "prompt_tokens": 1, "output_tokens": 1, "block_tokens": 0}\n', 1, "block_tokens is 0"),
        (
            '{"arrival_s": 1, "prompt_tokens": 1, "output_tokens": 1, "block_tokens": -16}\n',
            1,
            "block_tokens is -16",
        ),
        (
            '{"arrival_s": 1, "prompt_tokens": 1, "output_tokens": 1, "block_tokens": "16"}\n',
            1,
            "block_tokens is '16'",
        ),
        (AZURE + "2023-11-16 18:17:03.9,1,2\n2023-11-16 18:17:03.9,\u0661,2\n", 3, "ContextTokens is '\u0661'"),
        (AZURE + "2023-11-16 18:17:03.\u0669,1,2\n", 2, "TIMESTAMP is"),
        (AZURE + "\u0662023-11-16 18:17:03,1,2\n", 2, "TIMESTAMP is"),
        (BURST + "\u0661,,,M,4,1,4,API log\n", 2, "Timestamp is '\u0661'"),
        (BURST + "1e300,,,M,4,1,4,API log\n", 2, "Timestamp is 1e300"),
        ("id,tokens\n1,2\n", 1, "of no known format"),
        ("\n\n", None, "is empty"),
        (AZURE, None, "has no requests"),
    ],
)
def test_a_malformed_line_is_named_with_the_reason(write, text, line, reason):
    with pytest.raises(InvalidTrace) as caught:
        load(write(text))
    assert caught.value.line == line
    assert reason in caught.value.reason
    assert "trace" in str(caught.value)


def test_block_tokens_must_be_the_same_in_every_line(write):
    row = {"arrival_s": 1, "prompt_tokens": 1, "output_tokens": 1}
    with pytest.raises(InvalidTrace, match="line 2: block_tokens is 32"):
        load(write("".join(json.dumps({**row, "block_tokens": block}) + "\n" for block in (16, 32))))


def test_a_format_may_be_forced_and_is_then_checked(write):
    path = write(AZURE + "2023-11-16 18:17:03.9,1,2\n")
    assert len(load(path, format="azure")) == 1
    with pytest.raises(InvalidTrace, match="not of the format mooncake"):
        load(path, format="mooncake")


def test_a_missing_file_is_an_error_of_ours(tmp_path):
    with pytest.raises(InvalidTrace, match="cannot be read"):
        load(tmp_path / "none.csv")


@pytest.mark.parametrize("name", list(FORMATS))
def test_the_samples_are_found_out_and_read(name):
    from trace_samples import sample

    trace = load(sample(name))
    assert len(trace) == 200
    assert trace.arrival_s[0] == 0
    assert (np.diff(trace.arrival_s) >= 0).all()


@examples(40)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 10**9), st.integers(1, 10**6), st.integers(1, 10**5), st.lists(st.integers(0, 2**40))
        ),
        min_size=1,
        max_size=8,
    )
)
def test_what_is_written_is_read(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("traces") / "t.jsonl"
    rows = [(ms, p, o, hashes[: 1 + (p - 1) // 512]) for ms, p, o, hashes in rows]
    keys = ("timestamp", "input_length", "output_length", "hash_ids")
    path.write_text("".join(json.dumps(dict(zip(keys, row, strict=True))) + "\n" for row in rows))
    trace = load(path)
    rows.sort(key=lambda row: row[0])
    assert trace.arrival_s.tolist() == pytest.approx([(ms - rows[0][0]) / 1000 for ms, *_ in rows])
    assert trace.prompt_tokens.tolist() == [p for _, p, *_ in rows]
    assert [trace.hashes(index).tolist() for index in range(len(rows))] == [row[3] for row in rows]


def test_a_byte_order_mark_does_not_matter(write):
    row = {"timestamp": 1000, "input_length": 1025, "output_length": 3, "hash_ids": [7, 8, 9]}
    trace = load(write("\ufeff" + json.dumps(row) + "\n" + json.dumps({**row, "timestamp": 2000}) + "\n"))
    assert trace.arrival_s.tolist() == [0, 1]
    with pytest.raises(InvalidTrace, match="line 2: output_length is missing"):
        load(write("\ufeff" + json.dumps(row) + '\n{"timestamp": 1, "input_length": 2}\n'))


@pytest.mark.parametrize("name", list(FORMATS))
@pytest.mark.parametrize("at", [0, 1, 150])
def test_bytes_that_are_no_text_are_named_with_their_line(tmp_path, name, at):
    from trace_samples import sample

    lines = sample(name).read_bytes().splitlines(keepends=True)
    path = tmp_path / "t"
    path.write_bytes(b"".join([*lines[:at], lines[at][:3] + b"\xff" + lines[at][3:], *lines[at + 1 :]]))
    with pytest.raises(InvalidTrace, match="not UTF-8") as caught:
        load(path)
    assert caught.value.line == at + 1


def test_the_same_block_holds_for_every_hash(write):
    row = {"arrival_s": 1, "prompt_tokens": 600, "output_tokens": 1, "prefix_hashes": [1, 2]}
    none, small = {**row, "prefix_hashes": []}, {**row, "prefix_hashes": [3], "block_tokens": 16}

    def lines(*rows):
        return write("".join(json.dumps(row) + "\n\n" for row in rows))

    for rows, line in (
        ((row, small), 3),
        ((none, small, row), 5),
        ((none, small, none, {**small, "block_tokens": 32}), 7),
    ):
        with pytest.raises(InvalidTrace, match="the same in every line") as caught:
            load(lines(*rows))
        assert caught.value.line == line
    assert load(lines(none, small, none)).block_tokens == 16
    assert load(lines(row, {**none, "block_tokens": 512})).block_tokens == 512


@pytest.mark.parametrize("at", [0, 3, 40_000, 119_999])
@pytest.mark.parametrize("bad", ["2023-11-16 18:17:03,1", "2023-11-16 18:17:03,1,x", "2023-11-16 18:17:03,1,2,3"])
def test_one_bad_line_among_many_is_found_without_a_look_at_each(write, monkeypatch, at, bad):
    lines = ["2023-11-16 18:17:03.9,1,2"] * 120_000
    lines[at] = bad
    looked_at = []
    real = AzureCSV.check

    def check(line, header):
        looked_at.append(line)
        real(line, header)

    monkeypatch.setattr(AzureCSV, "check", check)
    with pytest.raises(InvalidTrace) as caught:
        load(write(AZURE + "\n".join(lines)))
    assert caught.value.line == at + 2
    assert looked_at == [bad]
