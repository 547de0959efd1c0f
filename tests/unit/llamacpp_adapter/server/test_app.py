import asyncio
import json
import logging

import pytest
from opentelemetry import trace
from starlette.testclient import TestClient

from pdd_core.errors import ConfigurationError
from pdd_core.tracing import Tracing
from pdd_llamacpp_adapter.server.answers.http_limits import HttpLimits
from pdd_llamacpp_adapter.server.chat import chat_request
from pdd_llamacpp_adapter.server.completions import completion_routes
from pdd_llamacpp_adapter.server.responses import response_request
from pdd_llamacpp_adapter.server.wire import bodies

ASK = {"messages": [{"role": "user", "content": "A question"}]}
LOADING = {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}
CHAT = "/v1/chat/completions"


def error_of(response):
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/health"), ("GET", "/v1/health"), ("GET", "/v1/models"), ("POST", CHAT)]
)
def test_everything_is_503_until_the_model_is_loaded(client, service, fake_runtime, method, path):
    made = service(loaded=False)
    http = client(made)
    loading = http.request(method, path, json=ASK)
    assert (loading.status_code, loading.json()) == (503, LOADING)
    assert http.get("/version").status_code == http.get("/metrics").status_code == 200
    made.runtime = fake_runtime()
    assert http.request(method, path, json=ASK).status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [("127.0.0.1:8090", 200), ("localhost", 200), ("[::1]:8090", 200), ("evil.example:8090", 403), ("evil", 403)],
)
def test_a_page_that_has_its_name_resolve_to_this_machine_gets_nothing(client, service, host, status):
    response = client(service()).get("/v1/models", headers={"host": host})
    assert response.status_code == status
    if status == 403:
        assert error_of(response)["code"] == "host_not_allowed"


@pytest.mark.parametrize(
    ("reached", "host", "status"),
    [
        ("192.168.1.5", "192.168.1.5:8090", 200),
        ("192.168.1.5", "localhost:8090", 200),
        ("192.168.1.5", "device.example:8090", 200),
        ("192.168.1.5", "evil.example:8090", 403),
        ("192.168.1.5", "192.168.1.5.evil.example:8090", 403),
        ("192.168.1.5", "192.168.1.6:8090", 403),
        ("fd00::5", "[fd00::5]:8090", 200),
        ("fd00::5", "[FD00::5]", 200),
        ("fd00::5", "[fd00::6]:8090", 403),
    ],
)
def test_beyond_this_machine_a_server_answers_to_its_address_and_its_names(service, client, reached, host, status):
    app = client(service(allow_hosts=("Device.Example",))).app

    async def reached_there(scope, receive, send):
        await app({**scope, "server": (reached, 8090)}, receive, send)

    http = TestClient(reached_there)
    for path in ("/v1/models", "/health", "/"):
        assert http.get(path, headers={"host": host}).status_code == status


def test_with_a_key_a_server_answers_to_any_name(client, service):
    """A page from elsewhere does not know the key."""
    http = client(service(api_key="k"))
    headers = {"host": "evil.example", "authorization": "Bearer k"}
    assert http.get("/v1/models", headers=headers).status_code == 200
    assert http.get("/v1/models", headers={"host": "evil.example"}).status_code == 401


@pytest.mark.parametrize("host", ["LOCALHOST:8090", "LocalHost"])
def test_a_name_is_the_same_in_capitals(client, service, host):
    assert client(service()).get("/v1/models", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 200),
        ("http://testserver", 200),
        ("http://TestServer", 200),
        ("https://chat.example", 200),
        ("https://evil.example", 403),
        ("http://testserver.evil.example", 403),
        ("http://testserver:8090", 403),
        ("http://evil.example/testserver", 403),
        ("null", 403),
        ("", 403),
    ],
)
def test_a_web_page_from_elsewhere_cannot_put_the_server_to_work(client, service, origin, status):
    """A form's POST is sent without asking the server first."""
    made = service(allow_origins=["https://chat.example"])
    headers = {"content-type": "text/plain"} | ({} if origin is None else {"origin": origin})
    response = client(made).post(CHAT, content=json.dumps(ASK), headers=headers)
    assert response.status_code == status
    assert len(made.runtime.sessions) == (status == 200)
    if status == 403:
        assert error_of(response)["code"] == "origin_not_allowed"


def test_with_a_key_it_is_the_key_that_lets_a_page_in(client, service):
    """A form cannot send one, and a script only if the server, asked first, allows its origin."""
    http = client(service(api_key="k"))
    evil = {"origin": "https://evil.example"}
    assert http.post(CHAT, json=ASK, headers=evil).status_code == 401
    assert http.post(CHAT, json=ASK, headers={**evil, "authorization": "Bearer k"}).status_code == 200


@pytest.mark.parametrize("origins", [["*"], ["null", "https://chat.example"]])
def test_origins_may_be_let_in_that_have_no_name(client, service, origins):
    made = client(service(allow_origins=origins))
    assert made.post(CHAT, json=ASK, headers={"origin": "null"}).status_code == 200


def test_behind_a_proxy_a_page_of_the_servers_own_name_is_let_in(client, service):
    headers = {"host": "ai.example", "origin": "https://ai.example"}
    assert client(service(allow_hosts=["ai.example"])).post(CHAT, json=ASK, headers=headers).status_code == 200


def test_a_ready_server_is_healthy(client, service):
    assert client(service()).get("/health").json() == {"status": "ok"}


def test_models(client, service):
    http = client(service())
    (model,) = http.get("/v1/models").json()["data"]
    assert (model["id"], model["object"], model["max_model_len"]) == ("tiny", "model", 4096)
    assert model["pdd"]["cloud"]["state"] == "none"
    assert http.get("/v1/models/tiny").json() == http.get("/v1/models/default").json() == model
    missing = http.get("/v1/models/org/other")
    assert (missing.status_code, error_of(missing)["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    ("name", "status"), [("tiny", 200), ("default", 200), (None, 200), ("", 200), ("other", 404), (" ", 404)]
)
def test_a_request_names_the_served_model_or_none(client, service, name, status):
    response = client(service()).post(CHAT, json={**ASK, "model": name})
    assert response.status_code == status
    if status == 404:
        assert "'tiny'" in error_of(response)["message"]
        assert (error_of(response)["code"], error_of(response)["param"]) == ("model_not_found", "model")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v1/nothing", 404),
        ("GET", CHAT, 405),
        ("DELETE", "/v1/completions", 405),
        ("GET", CHAT + "/chatcmpl-unknown", 404),
        ("DELETE", CHAT + "/chatcmpl-unknown", 404),
    ],
)
def test_what_is_not_there_is_an_error_object(client, service, method, path, status):
    response = client(service(ui=False)).request(method, path)
    assert response.status_code == status
    assert ("allow" in response.headers) == (status == 405)
    error_of(response)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"3",
        b'"x"',
        b"\xff",
        b'{"messages": ' + b"[" * 100_000,
        b'{"messages": "\\ud800"}',
    ],
)
@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_a_body_that_is_no_json_object_is_a_400(client, service, body, path):
    response = client(service()).post(path, content=body)
    assert response.status_code == 400
    error_of(response)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", "1" + "0" * 400 + ".0"])
@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/responses"])
@pytest.mark.parametrize("stream", ["true", "false"])
def test_a_number_that_json_does_not_have_is_a_400(client, service, number, path, stream):
    """Wherever it stands: `metadata` comes back in a response, and an answer with it could not be sent."""
    asked = '"messages": [{"role": "user", "content": "Hi"}], "prompt": "Hi", "input": "Hi"'
    if path == "/v1/responses":
        asked = '"input": "Hi"'
    body = f'{{{asked}, "stream": {stream}, "metadata": {{"a": [{number}]}}}}'
    response = client(service()).post(path, content=body.encode())
    assert response.status_code == 400
    assert error_of(response)["code"] == "invalid_json"


ASKED = {
    CHAT: {"messages": [{"role": "user", "content": "Hi"}]},
    "/v1/completions": {"prompt": "Hi"},
    "/v1/responses": {"input": "Hi"},
}


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (CHAT, "max_tokens"),
        (CHAT, "max_completion_tokens"),
        ("/v1/completions", "max_tokens"),
        ("/v1/responses", "max_output_tokens"),
        *((path, "min_tokens") for path in ASKED),
        *((path, "n") for path in ASKED),
        *((path, "stop_token_ids") for path in ASKED),
    ],
)
def test_a_number_with_thousands_of_digits_is_a_400(client, service, path, name):
    value = [10**4300 - 1] if name == "stop_token_ids" else 10**4300 - 1
    response = client(service()).post(path, content=json.dumps({**ASKED[path], name: value}).encode())
    assert response.status_code == 400
    assert error_of(response)["param"].startswith(name)
    assert len(error_of(response)["message"]) < 500


EMPTY = {"role": "user", "content": []}
PART = {"type": "text", "text": ""}


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"messages": [EMPTY] * 5000}),
        (CHAT, {"messages": [3] * 5000}),
        (CHAT, {"messages": [{"role": "user", "content": [PART] * 5000}]}),
        (CHAT, {"messages": [{"role": "user", "content": [PART] * 3000}] * 2}),
        (CHAT, {"messages": [{"role": "assistant", "tool_calls": [{}] * 5000}]}),
        ("/v1/responses", {"input": [EMPTY] * 5000}),
        ("/v1/responses", {"input": [{"role": "user", "content": [PART] * 5000}]}),
        ("/v1/responses", {"input": [{"type": "function_call_output", "output": [PART] * 5000}]}),
        ("/v1/completions", {"prompt": [1.5] * 5000}),
    ],
)
def test_more_parts_than_tokens_fit_are_refused_unread(client, service, path, fields):
    response = client(service()).post(path, json=fields)
    assert response.status_code == 400
    assert error_of(response)["code"] == "context_length_exceeded"
    assert error_of(response)["message"].startswith(
        "This model's maximum context length is 4096 tokens. However, "
    )


@pytest.mark.parametrize("path", ASKED)
def test_a_body_of_a_million_values_is_a_400(client, service, path):
    body = {**ASKED[path], "metadata": {"a": [[]] * 1_000_000}}
    response = client(service()).post(path, content=json.dumps(body).encode())
    assert (response.status_code, error_of(response)["code"]) == (400, "too_many_values")


@pytest.mark.parametrize("path", ASKED)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("logit_bias", {str(token): 1 for token in range(1025)}),
        ("logit_bias", {f"x{token}": 1 for token in range(1025)}),
        ("stop_token_ids", [65] * 1025),
        ("stop_token_ids", ["x"] * 1025),
    ],
)
def test_a_sampling_field_has_so_many_entries_at_most(client, service, path, name, value):
    response = client(service()).post(path, json={**ASKED[path], name: value})
    assert response.status_code == 400
    assert (error_of(response)["param"], "1024" in error_of(response)["message"]) == (name, True)


@pytest.mark.parametrize("path", ASKED)
def test_a_long_body_is_not_worked_through_on_the_event_loop(client, service, path, monkeypatch):
    where = []

    def noted(function):
        def call(*arguments, **named):
            where.append(asyncio._get_running_loop())
            return function(*arguments, **named)

        return call

    monkeypatch.setattr(bodies, "parse", noted(bodies.parse))
    for module, name in (
        (chat_request, "plain_messages"),
        (response_request, "chat_messages"),
        (completion_routes, "one_prompt"),
    ):
        monkeypatch.setattr(module, name, noted(getattr(module, name)))
    response = client(service()).post(path, json={**ASKED[path], "metadata": {"a": "x" * 100_000}})
    assert (response.status_code, where) == (200, [None, None])


@pytest.mark.parametrize("arguments", ['{"a":"\\ud800"}', "[" * 100_000, '{"a": ' + "[" * 900 + "]" * 900 + "}"])
@pytest.mark.parametrize("path", [CHAT, "/v1/responses"])
def test_a_past_call_with_odd_arguments_is_no_reason_to_refuse_a_turn(client, service, path, arguments):
    function = {"name": "f", "arguments": arguments}
    past = {
        CHAT: {"messages": [{"role": "assistant", "tool_calls": [{"id": "1", "function": function}]}]},
        "/v1/responses": {"input": [{"type": "function_call", "call_id": "1", **function}]},
    }
    response = client(service()).post(path, json=past[path])
    assert response.status_code == 200, response.text


def test_a_missing_field_is_named(client, service):
    error = error_of(client(service()).post(CHAT, json={}))
    assert (error["param"], error["code"]) == ("messages", "missing_required_parameter")


def test_the_content_type_is_not_insisted_on(client, service):
    response = client(service()).post(CHAT, content=json.dumps(ASK), headers={"content-type": "text/plain"})
    assert response.status_code == 200


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_that_is_too_long_is_a_413(client, service, declared):
    body = json.dumps({**ASK, "x": "y" * 2000}).encode()
    content = body if declared else iter([body[:900], body[900:]])
    response = client(service(max_body_bytes=1000)).post(CHAT, content=content)
    assert response.status_code == 413
    assert error_of(response)["code"] == "request_too_large"


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": "Bearer"}, 401),
        ({"authorization": "Basic sésame".encode()}, 401),
        ({"authorization": "Bearer sésame!".encode("latin-1")}, 401),
        ({"authorization": "bearer sesame"}, 200),
        ({"authorization": "Bearer sesame"}, 200),
    ],
)
def test_a_key_is_asked_for_everywhere_but_at_the_open_routes(client, service, header, status):
    http = client(service(api_key="sesame"))
    for path in ("/v1/models", "/metrics"):
        response = http.get(path, headers=header)
        assert response.status_code == status
        if status == 401:
            assert error_of(response)["code"] == "invalid_api_key"
    assert http.get("/health").status_code == http.get("/version").status_code == 200
    assert http.get(CHAT + "/x", headers=header).status_code == (401 if status == 401 else 404)


@pytest.mark.parametrize(
    ("sent", "status"), [("€ voilà".encode(), 200), ("€ voil".encode(), 401), ("é voilà".encode("latin-1"), 401)]
)
def test_a_key_can_have_any_letters(client, service, sent, status):
    """The last byte of this one is white space to those who read it as Latin-1."""
    http = client(service(api_key="€ voilà"))
    assert http.get("/v1/models", headers={"authorization": b"Bearer " + sent}).status_code == status


@pytest.mark.parametrize(
    ("sent", "back"), [("abc-1.2:3", "abc-1.2:3"), ("a b\tc<", "abc"), ("x" * 500, "x" * 128)]
)
def test_a_request_id_comes_back_made_harmless(client, service, sent, back):
    http = client(service())
    assert http.get("/health", headers={"x-request-id": sent}).headers["x-request-id"] == back
    assert http.get("/nothing", headers={"x-request-id": sent}).headers["x-request-id"] == back


def test_a_request_without_an_id_gets_one(client, service):
    http = client(service())
    ids = {http.get("/health").headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3
    assert all(made.startswith("req_") for made in ids)


def test_a_mistake_of_the_program_is_an_error_object_with_the_id(client, service):
    made = service()
    made.runtime.context_limit = lambda: 1 / 0
    response = client(made, raise_server_exceptions=False).get("/v1/models", headers={"x-request-id": "it"})
    assert (response.status_code, error_of(response)["code"]) == (500, "internal_error")
    assert response.headers["x-request-id"] == "it"


def test_web_pages_are_let_in_only_from_the_origins_that_are_set(client, service):
    page = {"origin": "https://chat.example", "access-control-request-method": "POST"}
    assert "access-control-allow-origin" not in client(service()).options(CHAT, headers=page).headers
    # a preflight has no key
    open_to = client(service(allow_origins=["https://chat.example"], api_key="k"))
    assert open_to.options(CHAT, headers=page).headers["access-control-allow-origin"] == "https://chat.example"
    refused = open_to.options(CHAT, headers={**page, "origin": "https://evil.example"})
    assert "access-control-allow-origin" not in refused.headers


@pytest.mark.parametrize(("origin", "allowed"), [("https://chat.example", True), ("https://evil.example", False)])
def test_a_page_from_the_web_may_reach_this_machine_only_if_its_origin_is_set(client, service, origin, allowed):
    asks = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-private-network": "true",
    }
    answer = client(service(allow_origins=["https://chat.example"])).options(CHAT, headers=asks)
    assert (answer.status_code == 200) is allowed
    assert (answer.headers.get("access-control-allow-origin") == origin) is allowed
    closed = client(service()).options(CHAT, headers=asks)
    assert closed.status_code == 403
    assert "access-control-allow-private-network" not in closed.headers


@pytest.mark.parametrize("host", ["localhost:8090", "127.0.0.1:8090", "[::1]:8090", "LOCALHOST:8090"])
@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:8090", 200),
        ("http://127.0.0.1:8090", 200),
        ("http://[::1]:8090", 200),
        ("http://LocalHost:8090", 200),
        ("http://localhost:3000", 403),
        ("http://localhost", 403),
        ("http://localhost.evil.example:8090", 403),
        ("http://evil.example:8090", 403),
        ("ftp://localhost:8090", 403),
        ("localhost:8090", 403),
    ],
)
def test_a_page_of_the_server_itself_is_let_in_by_any_name_of_this_machine(client, service, host, origin, status):
    headers = {"host": host, "origin": origin}
    assert client(service()).post(CHAT, json=ASK, headers=headers).status_code == status


def test_a_page_of_this_machine_is_not_a_page_of_a_server_elsewhere(client, service):
    headers = {"host": "ai.example:8090", "origin": "http://localhost:8090"}
    assert client(service()).post(CHAT, json=ASK, headers=headers).status_code == 403


def metric(http, name):
    lines = [line for line in http.get("/metrics").text.splitlines() if line.startswith(name + " ")]
    return float(lines[0].split()[-1])


def test_metrics_count_requests_answers_and_tokens(client, service):
    http = client(service())
    http.post(CHAT, json=ASK)
    http.post(CHAT, json={**ASK, "stream": True})
    http.post(CHAT, json={**ASK, "n": 2})
    http.get("/made/up/by/a/client")
    assert metric(http, 'pdd_device_requests_total{route="/v1/chat/completions",status="200"}') == 2
    assert metric(http, 'pdd_device_requests_total{route="/v1/chat/completions",status="400"}') == 1
    assert metric(http, 'pdd_device_requests_total{route="other",status="404"}') == 1
    assert metric(http, 'pdd_device_answers_total{finish_reason="stop",mode="handoff"}') == 2
    assert metric(http, 'pdd_device_tokens_total{source="cloud"}') == 4
    assert metric(http, 'pdd_device_tokens_total{source="device"}') == 2
    assert metric(http, "pdd_device_cloud_tokens_in_vain_total") == 2
    assert metric(http, "pdd_device_takeovers_total") == 2
    assert metric(http, "pdd_device_time_to_first_token_seconds_count") == 2
    assert metric(http, "pdd_device_token_gap_seconds_count") == 4
    assert metric(http, "pdd_device_running") == metric(http, "pdd_device_waiting") == 0


def test_two_servers_in_one_process_count_apart(client, service):
    one, other = client(service()), client(service())
    one.post(CHAT, json=ASK)
    assert metric(other, "pdd_device_takeovers_total") == 0


def test_every_answer_is_one_line_in_the_decision_log_without_its_text(client, service, caplog):
    caplog.set_level(logging.INFO, logger="pdd_llamacpp_adapter.decisions")
    http = client(service())
    http.post(CHAT, json=ASK, headers={"x-request-id": "r-1"})
    http.post(CHAT, json={**ASK, "n": 2})
    (record,) = [r for r in caplog.records if r.name == "pdd_llamacpp_adapter.decisions"]
    line = json.loads(record.getMessage())
    assert (line["request_id"], line["route"], line["mode"]) == ("r-1", CHAT, "handoff")
    assert line["tokens"]["cloud"] == 2
    assert "question" not in record.getMessage()
    assert "Hello" not in record.getMessage()


def test_what_the_cloud_says_about_a_request_is_told_to_its_client_and_not_to_the_log(client, service, caplog):
    caplog.set_level(logging.INFO, logger="pdd_llamacpp_adapter.decisions")
    http = client(service(session={"cloud_error": "CloudRefused: no 'xylophone' here (HTTP 400)"}))
    assert "xylophone" in http.post(CHAT, json=ASK).json()["pdd"]["cloud_error"]
    (record,) = [r for r in caplog.records if r.name == "pdd_llamacpp_adapter.decisions"]
    assert json.loads(record.getMessage())["cloud_error"] == "CloudRefused"


def test_an_answer_can_be_read_again_and_deleted(client, service):
    http = client(service())
    made = http.post(CHAT, json=ASK).json()
    again = http.get(f"{CHAT}/{made['id']}").json()
    assert again["pdd"].pop("status") == "finished"
    assert again == made
    assert http.delete(f"{CHAT}/{made['id']}").json() == {
        "id": made["id"],
        "object": "chat.completion.deleted",
        "deleted": True,
    }
    assert http.get(f"{CHAT}/{made['id']}").status_code == 404
    assert http.delete(f"{CHAT}/{made['id']}").status_code == 404


@pytest.mark.parametrize(
    ("name", "value"),
    [("api_key", ""), ("max_running", 0), ("max_queue", -1), ("keep_alive", 0), ("stored_ttl", -1)],
)
def test_a_setting_that_cannot_work_is_named(name, value):
    with pytest.raises(ConfigurationError, match=name):
        HttpLimits(**{name: value})


def test_the_key_is_not_in_the_settings_repr():
    assert "sesame" not in repr(HttpLimits(api_key="sesame"))


def test_an_answer_says_why_it_was_made_so_and_the_log_in_short(client, service, caplog):
    caplog.set_level(logging.INFO, logger="pdd_llamacpp_adapter.decisions")
    made = client(service())
    told = made.post("/v1/chat/completions", json=ASK).json()["pdd"]["plan"]
    assert told["verdict"] == "handoff"
    assert told["by"] == "planner"
    assert told["inputs"] == {"prompt_tokens": 900, "rate": None}
    assert [one["cost"] for one in told["alternatives"]] == [1235.0, 300.0, 0.0]
    (record,) = [r for r in caplog.records if r.name == "pdd_llamacpp_adapter.decisions"]
    logged = json.loads(record.getMessage())["plan"]
    assert logged["inputs"] == told["inputs"]
    assert logged["alternatives"] == [
        "cloud only cost=1235 stalls=0 ttft=0.15s",
        "handoff N=24 cost=300 stalls=0.0098 ttft=0.15s",
        "device only cost=0 stalls=0 ttft=2s (begins only after 2 s)",
    ]
    assert 'pdd_device_plans_total{by="planner",verdict="handoff"} 1.0' in made.get("/metrics").text


@pytest.mark.parametrize("body", [ASK, {**ASK, "stream": True}])
@pytest.mark.parametrize("traced", [True, False])
def test_a_traced_servers_answers_are_made_in_their_clients_trace(client, service, fake_runtime, body, traced):
    class Runtime(fake_runtime):
        def session(self, *args, **kwargs):
            self.within = trace.get_current_span().get_span_context()
            return super().session(*args, **kwargs)

    made = service(runtime=Runtime())
    made.tracing = Tracing() if traced else None
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{trace_id}-b7ad6b7169203331-01"}
    assert client(made).post(CHAT, json=body, headers=headers).status_code == 200
    assert made.runtime.within.is_remote is traced
    assert made.runtime.within.trace_id == (int(trace_id, 16) if traced else 0)
