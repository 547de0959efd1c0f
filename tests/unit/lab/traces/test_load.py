import json
from datetime import datetime, timedelta

import numpy as np
import pytest
from example_count import examples
from hypothesis import given
from hypothesis import strategies as st

from pdd_core.errors import ConfigurationError, InvalidTrace
from pdd_lab.traces import FORMATS, TraceOptions, load
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


@pytest.mark.parametrize(
    ("texts", "seconds"),
    [
        (["2024-05-10 00:00:00.009930+00:00", "2024-05-10 00:00:01.009930+00:00"], 1),
        (["2024-05-10 02:00:00+02:00", "2024-05-10 00:00:01Z"], 1),
        (["2024-05-09T19:30:00.5-05:30", "2024-05-10T01:00:02.25"], 1.75),
        (["2024-05-10 00:00:00-0430", "2024-05-10 04:30:00+0000"], 0),
    ],
)
def test_azure_timestamps_with_zones(write, texts, seconds):
    assert load(write(AZURE + "".join(f"{text},1,2\n" for text in texts))).seconds == pytest.approx(seconds)


@pytest.mark.parametrize("zone", ["+24:00", "+0:00", "+00:60", "X", " UTC", "+00:00+00:00"])
def test_what_is_no_zone_is_named(write, zone):
    with pytest.raises(InvalidTrace, match="line 2: TIMESTAMP is"):
        load(write(AZURE + f"2024-05-10 00:00:00{zone},1,2\n"))


def test_csv_may_be_quoted(write):
    trace = load(
        write('\ufeff"TIMESTAMP","ContextTokens","GeneratedTokens"\r\n"2024-05-10 00:00:00+00:00","3",4\r\n')
    )
    assert (trace.prompt_tokens.tolist(), trace.output_tokens.tolist()) == ([3], [4])
    assert trace.read_as == "azure, dates"
    trace = load(write('"Timestamp","Model","Request tokens","Response tokens"\n"1.5","a, b",3,4\n', "burst"))
    assert (trace.group(0), trace.read_as) == ("a, b", "burstgpt, timestamps in s")
    with pytest.raises(InvalidTrace, match="line 2: ContextTokens is 'x'"):
        load(write('"TIMESTAMP","ContextTokens","GeneratedTokens"\n"2024-05-10 00:00:00","x",4\n', "bad"))


BAILIAN = {
    "chat_id": 159,
    "parent_chat_id": 55,
    "timestamp": 61.114,
    "input_length": 40,
    "output_length": 132,
    "type": "text",
    "turn": 2,
    "hash_ids": [1089, 1090, 1091],
}


def test_bailian_has_seconds_and_blocks_of_16(write):
    rows = [BAILIAN, {**BAILIAN, "timestamp": 63.614, "type": "search", "hash_ids": [1089, 5, 6]}]
    trace = load(write("".join(json.dumps(row) + "\n" for row in rows)))
    assert trace.seconds == pytest.approx(2.5)
    assert (trace.block_tokens, trace.hashes(1).tolist()) == (16, [1089, 5, 6])
    assert [trace.group(0), trace.group(1)] == ["text", "search"]
    assert trace.read_as == "bailian, timestamps in s, hash blocks of 16 tokens"


def test_dynamo_has_milliseconds_blocks_of_64_and_sessions(write):
    row = {"session_id": "a", "timestamp": 0.0, "input_length": 100, "output_length": 3, "hash_ids": [7, 8]}
    rows = [row, {**row, "session_id": "b", "timestamp": 2500.5}, {**row, "timestamp": 9e3, "hash_ids": [7, 9]}]
    trace = load(write("".join(json.dumps(row) + "\n" for row in rows)))
    assert trace.arrival_s.tolist() == [0, 2.5005, 9]
    assert trace.block_tokens == 64
    assert trace.sessions[0] == trace.sessions[2] != trace.sessions[1]
    assert trace.read_as == "dynamo, timestamps in ms, hash blocks of 64 tokens"


def test_a_turn_whose_time_depends_on_an_answer_is_refused_with_the_reason(write):
    row = {"session_id": "a", "timestamp": 0.0, "input_length": 100, "output_length": 3, "hash_ids": [7, 8]}
    later = {**row, "timestamp": None, "delay": 50.0}
    with pytest.raises(InvalidTrace, match="line 2: it has a delay after the answer before"):
        load(write(json.dumps(row) + "\n" + json.dumps(later) + "\n"))


def test_blocks_of_another_size_are_refused_until_it_is_said(write):
    def lines(tokens, count):
        row = {"timestamp": 0, "input_length": tokens, "output_length": 3, "hash_ids": list(range(count))}
        return write(json.dumps(row) + "\n")

    small = lines(1280, 10)
    with pytest.raises(InvalidTrace, match=r"10 blocks of 512 tokens .*: --block-size can be 142 at most"):
        load(small)
    assert load(small, TraceOptions(block_size=128)).block_tokens == 128
    large = lines(10_000, 3)
    with pytest.raises(InvalidTrace, match=r"are 1,536 of 10,000 prompt tokens: --block-size"):
        load(large)
    assert load(large, TraceOptions(block_size=4096)).block_tokens == 4096
    assert load(large, TraceOptions(block_size=512)).block_tokens == 512, "it was said"


@pytest.mark.parametrize(("unit", "seconds"), [("s", 4000), ("ms", 4), ("us", 0.004)])
@pytest.mark.parametrize("name", ["bailian", "dynamo", "mooncake", "burstgpt", "jsonl"])
def test_the_unit_of_timestamps_may_be_said(write, name, unit, seconds):
    text = {
        "burstgpt": "Timestamp,Model,Request tokens,Response tokens\n1000,M,4,1\n5000,M,4,1\n",
        "jsonl": '{"arrival_s": 1000, "prompt_tokens": 4, "output_tokens": 1}\n'
        '{"arrival_s": 5000, "prompt_tokens": 4, "output_tokens": 1}\n',
    }.get(name) or "".join(
        json.dumps({**BAILIAN, "timestamp": at, "hash_ids": None}) + "\n" for at in (1000, 5000)
    )
    trace = load(write(text), TraceOptions(format=name, time_unit=unit))
    assert trace.seconds == pytest.approx(seconds)
    assert trace.read_as == f"{name}, timestamps in {unit}"


@pytest.mark.parametrize(
    ("text", "options", "what"),
    [
        (AZURE, {"time_unit": "ms"}, "timestamps of the format azure are dates"),
        (AZURE, {"block_size": 16}, "the format azure have no hash blocks"),
        (BURST, {"block_size": 16}, "the format burstgpt have no hash blocks"),
    ],
)
def test_an_option_that_the_format_has_no_use_for_is_refused(write, text, options, what):
    with pytest.raises(ConfigurationError, match=what):
        load(write(text), TraceOptions(**options))


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"format": "csv"}, "--format csv is none of azure, bailian, dynamo"),
        ({"time_unit": "h"}, "--time-unit h is none of s, ms, us"),
        ({"block_size": 0}, "--block-size 0 is not from 1"),
    ],
)
def test_options_that_do_not_exist_are_named(options, what):
    with pytest.raises(ConfigurationError, match=what):
        TraceOptions(**options)


def test_the_size_of_blocks_that_the_lines_say_goes_before(write):
    row = {"arrival_s": 1, "prompt_tokens": 90, "output_tokens": 1, "prefix_hashes": [1, 2]}
    assert load(write(json.dumps(row) + "\n"), TraceOptions(block_size=64)).block_tokens == 64
    path = write(json.dumps({**row, "block_tokens": 32}) + "\n")
    assert load(path, TraceOptions(block_size=64)).block_tokens == 32


def test_a_file_of_no_format_is_told_with_what_each_would_need(write):
    with pytest.raises(InvalidTrace) as caught:
        load(write('{"chat_id": 1, "time": 2, "input_length": 3, "output_length": 4}\n'))
    assert "'chat_id, time, input_length, output_length'" in caught.value.reason
    assert "bailian, JSON lines, needs timestamp too" in caught.value.reason
    assert "dynamo, JSON lines, needs timestamp, delay or request_id or session_id too" in caught.value.reason
    assert "azure, CSV, needs TIMESTAMP, ContextTokens, GeneratedTokens too" in caught.value.reason
    with pytest.raises(InvalidTrace) as caught:
        load(write("long" * 1000 + "\n1\n"))
    assert len(caught.value.reason) < 1200


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
        ('{"timestamp": 1, "input_length": 1}\n', 1, "mooncake, JSON lines, needs output_length too"),
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
        (
            '{"timestamp": 1e300, "input_length": 600, "output_length": 2}\n',
            1,
            "timestamp is 1e+300, too far from the origin",
        ),
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
        (BURST + "1e300,,,M,4,1,4,API log\n", 2, "Timestamp is '1e300', too far from the origin"),
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
    assert len(load(path, TraceOptions(format="azure"))) == 1
    with pytest.raises(InvalidTrace, match="not of the format mooncake") as caught:
        load(path, TraceOptions(format="mooncake"))
    assert "input_length, timestamp, output_length too" in caught.value.reason


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


def written(name, block, rows):
    """The text of a file with these rows: microseconds, prompt, output, hashes."""
    if name == "azure":
        start = datetime(2024, 5, 10)
        times = [start + timedelta(microseconds=us) for us, *_ in rows]
        return AZURE + "".join(
            f"{at:%Y-%m-%d %H:%M:%S.%f}+00:00,{p},{o}\n" for at, (_, p, o, _) in zip(times, rows, strict=True)
        )
    if name == "burstgpt":
        return BURST + "".join(f'{us / 1e6},,,"M",{p},{o},{p + o},API log\n' for us, p, o, _ in rows)
    scale = 1e3 if name in {"mooncake", "dynamo"} else 1e6
    keys = ("timestamp", "input_length", "output_length", "hash_ids")
    more = {"mooncake": {}, "dynamo": {"session_id": "s"}, "bailian": {"chat_id": 1, "parent_chat_id": -1}}.get(
        name
    )
    if more is None:
        keys, more = ("arrival_s", "prompt_tokens", "output_tokens", "prefix_hashes"), {"block_tokens": block}
    lines = (dict(zip(keys, (us / scale, p, o, hashes), strict=True)) for us, p, o, hashes in rows)
    return "".join(json.dumps({**line, **more}) + "\n" for line in lines)


@pytest.mark.parametrize(
    ("name", "block"),
    [("azure", None), ("bailian", 16), ("dynamo", 64), ("mooncake", 512), ("burstgpt", None), ("jsonl", 32)],
)
@examples(20)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 10**12), st.integers(1, 3000), st.integers(1, 10**5), st.integers(0, 2**40)),
        min_size=1,
        max_size=8,
    ),
    said=st.sampled_from([False, True]),
)
def test_what_is_written_is_read(tmp_path_factory, name, block, rows, said):
    path = tmp_path_factory.mktemp("traces") / "t"
    rows = [(us, p, o, list(range(h, h + 1 + (p - 1) // (block or p)))) for us, p, o, h in rows]
    path.write_text(written(name, block, rows))
    trace = load(path, TraceOptions(format=name if said else None))
    rows.sort(key=lambda row: row[0])
    assert trace.read_as.startswith(f"{name}, ")
    assert trace.arrival_s.tolist() == pytest.approx([(us - rows[0][0]) / 1e6 for us, *_ in rows], abs=2e-6)
    assert trace.prompt_tokens.tolist() == [p for _, p, *_ in rows]
    assert trace.output_tokens.tolist() == [o for _, _, o, _ in rows]
    if block is not None:
        assert trace.block_tokens == block
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
