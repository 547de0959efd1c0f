"""Whatever happens to the cloud, the device finishes: no shown token is lost, repeated or taken back."""

import asyncio
import itertools
import json
from contextlib import asynccontextmanager, suppress

import anyio
import pytest
from cloud_support import KEY, new_id
from held_engine import Held

from pdd_core.errors import CloudRefused, CloudUnreachable, TokenizerMismatch
from pdd_core.handoff import TOKENIZER_DIGEST
from pdd_core.optin import OptIn
from pdd_core.patience import Patience
from pdd_core.planner.types import Verdict
from pdd_core.timeline import Source
from pdd_llamacpp_adapter import AnswerRequest, AnswerSession, CloudClient
from pdd_llamacpp_adapter.cloud.cloud_request import body_fields

pytestmark = pytest.mark.anyio
TEXT = "The three primary colours are"
ONCE = Patience(cloud_retries=0)
"""What becomes of further attempts is in test_fault_matrix."""


def before_event(data, number):
    """The beginning of a piece of a stream, up to its event of this number, from 0."""
    at = -1
    for _ in range(number + 1):
        at = data.find(b"data: ", at + 1)
        if at < 0:
            return data
    return data[:at]


@asynccontextmanager
async def cut_after(base_url, chunks):
    """A proxy in front of the real cloud that cuts the TCP connection after so many streamed token chunks."""
    host, port = base_url.removeprefix("http://").removesuffix("/v1").split(":")

    async def serve(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            (
                int(line.split(b":")[1])
                for line in head.split(b"\r\n")
                if line.lower().startswith(b"content-length")
            ),
            0,
        )
        body = await reader.readexactly(length)
        up_reader, up_writer = await asyncio.open_connection(host, int(port))
        head = b"\r\n".join(line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection"))
        up_writer.write(head.replace(b"\r\n", b"\r\nConnection: close\r\n", 1) + body)
        seen, streaming = 0, b"/completions" in head
        while data := await up_reader.read(65536):
            passed = before_event(data, chunks - seen) if streaming else data
            seen += data.count(b"data: ")
            writer.write(passed)
            await writer.drain()
            if len(passed) < len(data):
                break
        up_writer.close()
        if streaming:
            await asyncio.sleep(0.2)  # a reset would take what was not read yet with it
            writer.transport.abort()
        else:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"


MARK = b"\xef\xbb\xbf"
CHANGES = {
    "repeated": lambda event: event + event,
    "dropped": lambda event: b"",
    "marked": lambda event: MARK + event,
}
HELD = "held"
"""Nothing of the event comes, nor anything after it; the connection stays."""


@asynccontextmanager
async def changed(base_url, how, number):
    """A proxy in front of the real cloud that changes one event of a stream, the others stay as they are."""
    host, port = base_url.removeprefix("http://").removesuffix("/v1").split(":")

    open_writers, serving, left = [], [], asyncio.Event()

    async def serve(reader, writer):
        serving.append(asyncio.current_task())
        open_writers.append(writer)
        head = await reader.readuntil(b"\r\n\r\n")
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")]
        body = await reader.readexactly(int(lengths[0].split(b":")[1]) if lengths else 0)
        up_reader, up_writer = await asyncio.open_connection(host, int(port))
        open_writers.append(up_writer)
        kept = b"\r\n".join(line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection"))
        up_writer.write(kept.replace(b"\r\n", b"\r\nConnection: close\r\n", 1) + body)
        writer.write(await up_reader.readuntil(b"\r\n\r\n"))
        with suppress(asyncio.IncompleteReadError, ConnectionError):  # the stream's end; or the client has left
            place = -1
            while b"/completions" in head:
                size = int(await up_reader.readuntil(b"\r\n"), 16)  # vLLM sends each event in a chunk of its own
                event = (await up_reader.readexactly(size + 2))[:-2]
                place += b'"choices":[]' not in event  # but not what tells of the handoff
                if how == HELD and place >= number:
                    await left.wait()
                    return
                event = CHANGES[how](event) if place == number and b'"choices":[]' not in event else event
                if event or not size:
                    writer.write(b"%x\r\n%s\r\n" % (len(event), event))
                    await writer.drain()
            writer.write(await up_reader.read())
        up_writer.close()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        left.set()
        for one in open_writers:
            one.close()  # what still waits for the cloud's next event ends
        await asyncio.gather(*serving, return_exceptions=True)


class Behind(Held):
    """The real engine, which begins only once the cloud is lost, however long that takes."""

    session = None

    async def ready(self):
        with anyio.fail_after(60):
            while self.session is None or self.session.outcome.cloud_error is None:
                await anyio.sleep(0.01)


async def answer_of(engine, cloud, prompt):
    engine.reset()
    request = AnswerRequest(prompt_token_ids=prompt, max_tokens=24, decode_budget=20)
    async with AnswerSession(request, engine=engine, cloud=cloud, rate=1e6, patience=ONCE) as answer:
        if isinstance(engine, Behind):
            engine.session = answer
        shown = [token async for token in answer]
    return shown, answer.outcome


@pytest.fixture(scope="module")
def expected(engine):
    async def alone():
        prompt = engine.vocab.tokenize(TEXT)
        shown, _ = await answer_of(engine, None, prompt)
        return prompt, [token.token_id for token in shown]

    return asyncio.run(alone())


async def test_a_cloud_that_cannot_be_reached_leaves_the_answer_to_the_device(engine, expected):
    prompt, ids = expected
    async with CloudClient("http://127.0.0.1:9/v1", api_key=KEY) as nobody:
        shown, outcome = await answer_of(engine, nobody, prompt)
    assert [token.token_id for token in shown] == ids
    assert {token.source for token in shown} == {Source.DEVICE}
    assert outcome.cloud_error.startswith("CloudUnreachable: ")


async def test_a_cloud_that_refuses_leaves_the_answer_to_the_device(cloud, engine, expected):
    prompt, ids = expected
    async with CloudClient(cloud.base_url, api_key="wrong") as refused:
        shown, outcome = await answer_of(engine, refused, prompt)
        with pytest.raises(CloudRefused) as caught:
            await refused.connect()
    assert caught.value.status == 401
    assert [token.token_id for token in shown] == ids
    assert outcome.cloud_error.startswith("CloudRefused: ")


@pytest.mark.parametrize("chunks", [1, 4])
async def test_a_cloud_that_dies_in_mid_stream_loses_and_repeats_nothing(cloud, engine, expected, chunks):
    prompt, ids = expected
    async with cut_after(cloud.base_url, chunks) as base_url, CloudClient(base_url, api_key=KEY) as dying:
        await dying.connect(engine.vocab)
        shown, outcome = await answer_of(Behind(engine), dying, prompt)
    assert [token.token_id for token in shown] == ids
    sources = [token.source for token in shown]
    assert sources.count(Source.CLOUD) >= 1
    assert sources == sorted(sources)  # cloud first, then the device
    assert outcome.cloud_error.startswith("CloudLost: ")
    assert outcome.finish_reason in {"stop", "length"}


@pytest.mark.parametrize("number", [0, 4])
@pytest.mark.parametrize("how", CHANGES)
async def test_an_event_that_is_repeated_lost_or_marked_changes_nothing(cloud, engine, expected, how, number):
    prompt, ids = expected
    # the standard allows a mark before the first event, and nowhere else
    harmless = (how, number) == ("marked", 0)
    device = engine if harmless else Behind(engine)
    async with changed(cloud.base_url, how, number) as base_url, CloudClient(base_url, api_key=KEY) as client:
        shown, outcome = await answer_of(device, client, prompt)
    assert [token.token_id for token in shown] == ids
    assert (outcome.cloud_error is None) is harmless
    if not harmless:
        assert outcome.cloud_error.startswith("CloudLost: the stream lacks or repeats an event")
        # one that is repeated has been taken in once
        assert outcome.timeline.count(Source.CLOUD) == number + (how == "repeated")


@pytest.mark.parametrize("number", [0, 1, 4])
async def test_a_mute_cloud_gives_an_answer_of_its_own_to_a_device_that_is_ready(cloud, engine, expected, number):
    """It would be waited for without end: the test passes only because the device did not wait for that."""
    prompt, ids = expected
    patience = Patience(standby_s=0.5, first_token_s=1.0, cloud_silence_s=6000.0, cloud_prefill_s=6000.0)
    request = AnswerRequest(prompt_token_ids=prompt, max_tokens=24)
    engine.reset()
    async with changed(cloud.base_url, HELD, number) as base_url, CloudClient(base_url, api_key=KEY) as client:
        with anyio.fail_after(120):
            async with AnswerSession(
                request, engine=engine, cloud=client, verdict=Verdict.CLOUD_ONLY, rate=1e6, patience=patience
            ) as answer:
                shown = [token async for token in answer]
    assert [token.token_id for token in shown] == ids
    assert [token.source for token in shown].count(Source.CLOUD) == number
    assert answer.outcome.cloud_error.startswith("CloudLost: no token within")


@pytest.mark.parametrize(
    "fields", [{}, {"stop": ["red,"]}, {"logprobs": 2}, {"stream_interval": 4}, {"budget": 7}]
)
def test_the_cloud_counts_what_it_streams(cloud, fields):
    asked = body_fields(
        AnswerRequest(prompt_token_ids=[1], max_tokens=16), OptIn(new_id(), fields.pop("budget", None))
    )
    with cloud.client() as client:
        stream = client.completions.create(
            model="smollm2", prompt=TEXT, stream=True, extra_body={**asked, **fields, "temperature": 0}
        )
        events = [(chunk.usage.completion_tokens, chunk.choices[0].token_ids) for chunk in stream if chunk.choices]
    counted = list(itertools.accumulate(len(ids) for _, ids in events))
    assert [told for told, _ in events] == counted
    assert counted[-1] > 1
    assert "stream_interval" not in fields or any(len(ids) > 1 for _, ids in events)


async def test_another_vocabulary_is_refused_with_the_first_difference(cloud, engine):
    class Altered:
        def __init__(self, vocab):
            self._vocab = vocab
            self.token_bytes = list(vocab.token_bytes)
            self.token_bytes[4321] = b"something else"

        def __getattr__(self, name):
            return getattr(self._vocab, name)

    async with CloudClient(cloud.base_url, api_key=KEY) as client:
        with pytest.raises(TokenizerMismatch, match="4321") as caught:
            await client.connect(Altered(engine.vocab))
        assert "something else" in str(caught.value)
        info = await client.connect(engine.vocab)
    assert json.loads(info.model_dump_json())["tokenizer"]["size"] == 49152


async def test_a_cloud_that_has_another_vocabulary_by_now_refuses_and_the_device_answers(cloud, engine, expected):
    prompt, ids = expected
    async with CloudClient(cloud.base_url, api_key=KEY) as client:
        info = await client.connect(engine.vocab)
        assert TOKENIZER_DIGEST in info.features
        steps = len(cloud.steps())
        other = info.tokenizer.model_copy(update={"digest": "f" * 64})
        client.info = info.model_copy(update={"tokenizer": other})  # as of a cloud that has been restarted since
        shown, outcome = await answer_of(engine, client, prompt)
        assert len(cloud.steps()) == steps
        assert "pdd_tokenizer is not the digest" in outcome.cloud_error
        assert [token.token_id for token in shown] == ids
        assert outcome.timeline.count(Source.CLOUD) == 0
        client.info = info
        _, outcome = await answer_of(engine, client, prompt)
    assert outcome.cloud_error is None


async def test_a_port_where_nobody_listens_is_named():
    async with CloudClient("http://127.0.0.1:9/v1", api_key=KEY) as nobody:
        with pytest.raises(CloudUnreachable, match=r"127\.0\.0\.1:9"):
            await nobody.connect()
