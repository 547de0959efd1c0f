"""The routes of streams: what they tell, what they refuse, and who may ask."""

import time
from urllib.parse import quote

import pytest
from example_count import examples
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from pdd_llamacpp_adapter.server.answers.http_limits import HttpLimits
from pdd_llamacpp_adapter.server.answers.service import Service
from pdd_llamacpp_adapter.server.app import create_app
from pdd_llamacpp_adapter.server.streams.kept_streams import StreamLimits

CHAT = "/v1/chat/completions"
ASK = {"messages": [{"role": "user", "content": "Hi"}], "stream": True}


def ask(http, name, **fields):
    return http.post(CHAT, json={**ASK, **fields}, headers={"X-Conversation-Id": name})


@pytest.fixture
def http(client, service):
    return client(service(api_key="sesame"), headers={"authorization": "Bearer sesame"})


@pytest.mark.parametrize("name", ["talk-1", "0f3c::org/model.gguf", "a" * 256, "a.b_c~d:e@f+g=h"])
def test_a_stream_is_read_by_its_name_in_the_path_and_in_the_query(http, name):
    said = ask(http, name).content
    assert http.get(f"/v1/stream/{name}").content == said
    for place in (0, 1, len(said) - 1, len(said)):
        assert http.get("/v1/stream", params={"conv_id": name, "from": place}).content == said[place:]
    assert http.get(f"/v1/stream/{name}", params={"from": len(said) + 1}).content == b""
    assert http.delete("/v1/stream", params={"conv_id": name}).status_code == 204
    assert http.get(f"/v1/stream/{name}").status_code == 404


@pytest.mark.parametrize("name", ["a b", "a" * 257, "é", "a?b", "{}"])
def test_a_name_that_is_none_is_refused_before_any_work(http, name):
    answer = ask(http, name.encode())
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "X-Conversation-Id")
    for method in ("GET", "DELETE"):
        answer = http.request(method, "/v1/stream", params={"conv_id": name})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "conv_id")
    assert http.get("/v1/streams").json() == []


def test_no_name_at_all_is_refused_and_an_empty_header_is_none(http):
    for path in ("/v1/stream", "/v1/stream/", "/v1/stream?conv_id="):
        assert http.get(path).status_code == 400
    assert ask(http, "").status_code == 200
    assert http.get("/v1/streams").json() == []


@pytest.mark.parametrize("place", ["-1", "x", "1.5", "9" * 19, "٣", " 1"])
def test_a_place_that_is_no_number_of_bytes_is_refused(http, place):
    ask(http, "talk-1")
    answer = http.get("/v1/stream/talk-1", params={"from": place})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "from")


def test_a_reader_that_leaves_may_say_how_long_to_wait_for_it(http):
    ask(http, "talk-1")
    for seconds in ("-1", "x", "1.5", ""):
        answer = http.delete("/v1/stream/talk-1", params={"unless_read_s": seconds})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "unless_read_s")
    for name in ("talk-1", "none"):
        assert http.delete(f"/v1/stream/{name}", params={"unless_read_s": 60}).status_code == 204
    assert http.get("/v1/stream/talk-1").status_code == 200
    assert http.delete("/v1/stream/talk-1", params={"unless_read_s": 0}).status_code == 204
    assert http.get("/v1/stream/talk-1").status_code == 404


def test_what_is_no_longer_kept_is_refused(client, service):
    kept = 4000
    http = client(service(["A"] * 50, streams=StreamLimits(size=kept)))
    ask(http, "talk-1")
    [told] = http.get("/v1/streams", params={"conversation_id": "talk-1"}).json()
    first = told["total_bytes"] - kept
    answer = http.get("/v1/stream/talk-1", params={"from": first - 1})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "stream_offset_lost")
    rest = http.get("/v1/stream/talk-1", params={"from": first}).content
    assert len(rest) == kept
    assert rest.endswith(b"data: [DONE]\n\n")


def test_the_streams_are_listed_as_llama_cpp_lists_them(http):
    before = int(time.time())
    said = {name: ask(http, name).content for name in ("one", "two", "two::org/model")}
    told = http.get("/v1/streams").json()
    assert [(each["conversation_id"], each["total_bytes"]) for each in told] == [
        (name, len(text)) for name, text in said.items()
    ]
    for each in told:
        assert each.keys() == {"conversation_id", "is_done", "total_bytes", "started_at", "completed_at"}
        assert each["is_done"]
        assert before <= each["started_at"] <= each["completed_at"] <= time.time()
    assert http.get("/v1/streams", params={"conversation_id": "two"}).json() == told[1:]
    assert http.post("/v1/streams/lookup", json={"conversation_ids": ["one", "none"]}).json() == told[:1]
    assert http.post("/v1/streams/lookup", json={"conversation_ids": ["two"]}).json() == told[1:]
    assert http.post("/v1/streams/lookup", json={}).json() == []


def test_without_the_pages_streams_are_kept_all_the_same(client, service):
    http = client(service(ui=False, api_key="sesame"), headers={"authorization": "Bearer sesame"})
    said = ask(http, "talk-1", pdd={"tokens": True}).content
    assert http.get("/v1/stream/talk-1", params={"from": 9}).content == said[9:]
    assert http.get("/").status_code == 404
    assert http.delete("/v1/stream/talk-1").status_code == 204


def test_an_answer_that_is_not_streamed_has_no_stream(http):
    assert ask(http, "talk-1", stream=False).json()["choices"]
    assert http.get("/v1/stream/talk-1").status_code == 404


ROUTES = [
    ("GET", "/v1/stream/talk-1"),
    ("GET", "/v1/stream?conv_id=talk-1"),
    ("DELETE", "/v1/stream/talk-1"),
    ("DELETE", "/v1/stream?conv_id=talk-1"),
    ("GET", "/v1/streams"),
    ("POST", "/v1/streams/lookup"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_every_route_needs_the_key_and_a_name_of_this_server(client, service, method, path):
    http = client(service(api_key="sesame"))
    assert http.request(method, path).status_code == 401
    http = client(service())
    assert (
        http.request(method, path, headers={"host": "elsewhere.example"}).json()["error"]["code"]
        == "host_not_allowed"
    )
    http = client(service())
    answer = http.request(method, path, headers={"origin": "https://elsewhere.example"})
    assert answer.json()["error"]["code"] == "origin_not_allowed"


def test_without_a_key_only_programs_of_this_machine_see_names_they_do_not_know(client, service):
    for settings, status in (({}, 403), ({"on_loopback": True}, 200)):
        http = client(service(**settings))
        ask(http, "talk-1")
        assert http.get("/v1/streams").status_code == status
        assert len(http.get("/v1/streams", params={"conversation_id": "talk-1"}).json()) == 1


@pytest.fixture(scope="module")
def fuzzed(fake_runtime):
    service = Service(HttpLimits(streams=StreamLimits(count=2, size=700)), fake_runtime(["A", "", "é"]))
    with TestClient(create_app(service)) as client:
        yield client


NAMES = st.sampled_from(["a", "b", "c", "a/b", "a::b"]) | st.text(max_size=6) | st.binary(max_size=4)
PLACES = st.integers(-5, 3000) | st.text(max_size=4)


@examples(200)
@given(
    name=NAMES,
    place=PLACES,
    what=st.sampled_from(["ask", "read", "delete", "look", "list"]),
    in_path=st.booleans(),
    ids=st.recursive(NAMES.filter(lambda x: isinstance(x, str)) | st.none(), lambda x: st.lists(x, max_size=3)),
)
def test_the_routes_take_anything(fuzzed, name, place, what, in_path, ids):
    text = name if isinstance(name, str) else name.decode("latin-1")
    path = {"url": f"/v1/stream/{quote(text)}"} if in_path else {"url": "/v1/stream", "params": {"conv_id": text}}
    match what:
        case "ask":
            header = text.encode("utf-8").translate(None, b"\r\n\0")
            answer = fuzzed.post(CHAT, json=ASK, headers={"X-Conversation-Id": header})
        case "read":
            path["params"] = {**path.get("params", {}), "from": place}
            answer = fuzzed.get(**path)
        case "delete":
            answer = fuzzed.delete(**path)
        case "look":
            answer = fuzzed.post("/v1/streams/lookup", json={"conversation_ids": ids})
        case _:
            answer = fuzzed.get("/v1/streams", params={"conversation_id": text})
    assert answer.status_code in (200, 204, 400, 403, 404), answer.text
    if answer.status_code >= 400:
        assert answer.json()["error"]["message"]
    assert len(fuzzed.post("/v1/streams/lookup", json={"conversation_ids": ["a", "b", "c", "a/b"]}).json()) <= 2
