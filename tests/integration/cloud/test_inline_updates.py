"""Updates inside the stream of a real vLLM, and questions by POST, as clients behind any router use them."""

import json
import re

import httpx
import openai
import pytest
from cloud_support import KEY, PROMPTS, new_id, state_of, still, wait_until

from pdd_core.handoff import BY_POST, INLINE_UPDATES, CloudInfo, HandoffUpdate

FACTS = " ".join(f"Room {n} shows things found in the year {1700 + 7 * n}." for n in range(40))
CHAT = {"messages": [{"role": "user", "content": f"{FACTS}\n\nWhen were the things in room 23 found?"}]}
COUNTED = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
BODIES = {
    "/chat/completions": {**CHAT, **COUNTED},
    "/completions": {"prompt": PROMPTS[1], "logprobs": 1, **COUNTED},
}
COMMON = {"model": "smollm2", "max_tokens": 12, "temperature": 0, "stream": True, "return_token_ids": True}
CHANGING = re.compile(r'"(id|created|request_id)": ?("[^"]*"|\d+)')
HEADERS = {"authorization": f"Bearer {KEY}"}


@pytest.fixture
def http(cloud):
    with httpx.Client(base_url=cloud.base_url, headers=HEADERS, timeout=120) as client:
        yield client


def events(http, path, body):
    answer = http.post(path, json={**COMMON, **body})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    *found, rest = answer.text.split("\n\n")
    assert rest == ""
    return found


def is_ours(event):
    return '"pdd":{' in event


def updates_of(found):
    return [HandoffUpdate.model_validate(json.loads(event[6:])["pdd"]) for event in found if is_ours(event)]


def opted_in(**fields):
    return {"vllm_xargs": {"pdd_handoff": new_id(), **fields}}


@pytest.mark.parametrize("path", BODIES)
def test_without_our_events_the_stream_is_that_of_vllm(http, path):
    body = BODIES[path]
    plain = events(http, path, body)
    inline = events(http, path, {**body, **opted_in(pdd_decode_budget=500, pdd_refine_ratio=0.5, pdd_inline=True)})
    quiet = events(http, path, {**body, **opted_in(pdd_decode_budget=500, pdd_refine_ratio=0.5)})
    without = [event for event in inline if not is_ours(event)]
    assert [CHANGING.sub("-", event) for event in without] == [CHANGING.sub("-", event) for event in plain]
    assert [CHANGING.sub("-", event) for event in quiet] == [CHANGING.sub("-", event) for event in plain]
    assert (is_ours(inline[0]), is_ours(inline[1])) == (False, True)
    assert (is_ours(inline[-2]), inline[-1]) == (True, "data: [DONE]")
    ours, theirs = (json.loads(event[6:]) for event in (inline[1], inline[0]))
    assert ours.pop("pdd")
    same = ("id", "object", "model")
    assert {name: ours[name] for name in same} == {name: theirs[name] for name in same}
    assert ours["choices"] == []


@pytest.mark.parametrize("options", [None, {}, {"include_usage": True}])
@pytest.mark.parametrize("path", BODIES)
def test_each_chunk_counts_its_tokens_though_a_router_drops_the_field_that_asks_for_it(http, path, options):
    body = {**BODIES[path], "stream_options": options, **opted_in(pdd_decode_budget=3, pdd_inline=True)}
    chunks = [json.loads(event[6:]) for event in events(http, path, body)[:-1] if not is_ours(event)]
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks if chunk["choices"]][-1] == 3
    assert all(chunk["usage"] for chunk in chunks)
    quiet = {**body, "vllm_xargs": {"pdd_handoff": new_id()}, "stream_options": {"include_usage": True}}
    assert not any(json.loads(event[6:]).get("usage") for event in events(http, path, quiet)[:-2])


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("budget", [1, 2, 8])
def test_the_budget_and_the_refined_prompt_are_those_of_the_state(http, client, path, budget):
    fields = opted_in(pdd_decode_budget=budget, pdd_refine_ratio=0.25, pdd_inline=True)
    found = events(http, path, {**BODIES[path], **fields})
    first, *_, last = updates_of(found)
    state = state_of(client, fields["vllm_xargs"]["pdd_handoff"])
    assert (first.decode_budget.tokens, first.decode_budget.set_by) == (budget, "client")
    assert (last.status, last.finish_reason, last.stop_reason) == ("handed_off", "length", "pdd_handoff")
    assert (last.handoff_id, last.request_id) == (state["handoff_id"], state["request_id"])
    assert last.decode_budget.model_dump() == state["decode_budget"]
    [refinement] = [update.refinement for update in updates_of(found) if update.refinement is not None]
    assert refinement.model_dump(mode="json") == state["refinement"]
    assert refinement.kind == "refined"


@pytest.mark.parametrize("name", ["chat", "completions"])
def test_a_strict_client_sees_the_same_answer(client, name):
    create = client.chat.completions.create if name == "chat" else client.completions.create
    body = CHAT if name == "chat" else {"prompt": PROMPTS[2]}
    fields = opted_in(pdd_decode_budget=500, pdd_refine_ratio=0.5, pdd_inline=True)

    def ask(extra):
        return list(create(model="smollm2", max_tokens=12, temperature=0, stream=True, extra_body=extra, **body))

    plain, inline = ask({}), ask(fields)
    shown = [[choice.model_dump() for chunk in chunks for choice in chunk.choices] for chunks in (plain, inline)]
    assert shown[0] == shown[1]
    ours = [chunk for chunk in inline if "pdd" in chunk.model_extra]
    assert [chunk.pdd["status"] for chunk in ours] == [*["running"] * (len(ours) - 1), "finished"]
    assert len({chunk.id for chunk in inline}) == 1


def test_a_stream_that_is_cancelled_by_post_tells_so_before_its_end(cloud, http):
    fields = opted_in(pdd_decode_budget=500, pdd_inline=True)
    question = {
        "model": "smollm2",
        "messages": [],
        "vllm_xargs": {"pdd_cancel": fields["vllm_xargs"]["pdd_handoff"]},
    }
    body = {**COMMON, **BODIES["/completions"], "max_tokens": 400, "ignore_eos": True, **fields}
    found = []
    with http.stream("POST", "/completions", json=body) as answer:
        for line in filter(None, answer.iter_lines()):
            found.append(line)
            if is_ours(line) and len(found) < 4:
                cancelled = http.post("/chat/completions", json=question)
    assert (cancelled.status_code, cancelled.json()["confirmed"]) == (200, True)
    assert (updates_of(found)[-1].status, updates_of(found)[-1].finish_reason) == ("aborted", "abort")
    assert is_ours(found[-2])
    assert found[-1] == "data: [DONE]"


def test_an_error_in_the_stream_is_followed_by_the_last_update(http):
    """vLLM tells of a wrong `logit_bias` in a stream with the status 200."""
    fields = opted_in(pdd_inline=True)
    *_, error, update, done = events(http, "/completions", {"prompt": "p", "logit_bias": {"999999": 1}, **fields})
    assert "error" in json.loads(error[6:])
    assert updates_of([update])[0].status == "aborted"
    assert done == "data: [DONE]"


@pytest.mark.parametrize("chunks", [0, 3])
def test_a_client_that_leaves_ends_its_request(cloud, client, http, chunks):
    fields = opted_in(pdd_decode_budget=500, pdd_refine_ratio=0.5, pdd_inline=True)
    name = fields["vllm_xargs"]["pdd_handoff"]
    body = {**COMMON, **CHAT, "max_tokens": 400, "ignore_eos": True, **fields}
    request = http.build_request("POST", "/chat/completions", json=body)
    answer = http.send(request, stream=True)
    lines = answer.iter_lines()
    for _ in range(2 * chunks):
        next(lines)
    answer.close()
    question = {"vllm_xargs": {"pdd_read": name, "pdd_wait": 30}}
    state = wait_until(lambda: (s := http.post("/completions", json=question).json())["status"] == "aborted" and s)
    assert len(state["output_token_ids"]) < 400
    still(cloud)
    assert "was never retrieved" not in cloud.log_path.read_text()


def answers(http, route, fields):
    """The same by its route and by POST, on both paths; less what the time changes."""
    got = [http.get(route)]
    got += [http.post(path, json={"model": "smollm2", **body, "vllm_xargs": fields}) for path, body in ROUTERS]
    return [(a.status_code, re.sub(r'"expires":[\d.]+', "", a.text)) for a in got]


ROUTERS = [("/chat/completions", {"messages": []}), ("/completions", {"prompt": ""})]


def test_questions_by_post_are_answered_as_by_their_routes(http):
    fields = opted_in(pdd_decode_budget=4, pdd_refine_ratio=0.5)
    name = fields["vllm_xargs"]["pdd_handoff"]
    events(http, "/chat/completions", {**CHAT, **fields})
    unknown = new_id()
    for route, question in (
        ("/pdd/info", {"pdd_info": True}),
        ("/pdd/vocabulary?start=40", {"pdd_vocabulary": 40}),
        (f"/pdd/handoffs/{name}", {"pdd_read": name}),
        (f"/pdd/handoffs/{name}?after=2&wait=1", {"pdd_read": name, "pdd_after": 2, "pdd_wait": 1}),
        (f"/pdd/handoffs/{unknown}", {"pdd_read": unknown}),
    ):
        by_route, *by_post = answers(http, route, question)
        assert by_post == [by_route, by_route], route
    path, body = ROUTERS[1]
    deleted = http.post(path, json={**body, "vllm_xargs": {"pdd_cancel": name, "pdd_used": 2}})
    assert deleted.json() == {"id": name, "object": "pdd.handoff.deleted", "deleted": True, "confirmed": True}
    assert http.get(f"/pdd/handoffs/{name}").status_code == 404
    assert {INLINE_UPDATES, BY_POST} <= set(CloudInfo.model_validate_json(http.get("/pdd/info").content).features)


@pytest.mark.parametrize("question", [{"pdd_info": True}, {"pdd_read": "a" * 32}, {"pdd_cancel": "a" * 32}])
def test_nobody_is_answered_by_post_without_the_key(cloud, question):
    for path, body in ROUTERS:
        for headers in ({}, {"authorization": "Bearer wrong"}):
            answer = httpx.post(f"{cloud.base_url}{path}", headers=headers, json={**body, "vllm_xargs": question})
            assert (answer.status_code, answer.json()) == (401, {"error": "Unauthorized"})


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/responses", {"input": "p", "stream": True}, "pdd_inline"),
        ("/chat/completions", {**CHAT, "stream": False}, "pdd_inline"),
        ("/completions", {"prompt": "p", "stream": True, "vllm_xargs": {"pdd_read": "x"}}, "pdd_read"),
    ],
)
def test_what_has_no_place_is_refused_by_name(client, path, body, param):
    with pytest.raises(openai.BadRequestError) as refused:
        client.post(path, cast_to=object, body={"model": "smollm2", **opted_in(pdd_inline=True), **body})
    assert refused.value.param == f"vllm_xargs.{param}"


@pytest.mark.parametrize("way", ["escapes", "utf-16", "size"])
@pytest.mark.parametrize("fields", [{"pdd_handoff": "f" * 32, "pdd_inline": True}, {"pdd_read": "f" * 32}])
def test_a_body_that_is_not_looked_at_first_is_refused_and_not_answered_without_updates(cloud, http, way, fields):
    steps = len(cloud.steps())
    request = {**COMMON, "prompt": "p", "vllm_xargs": fields}
    content = {
        "escapes": json.dumps(request).replace("pdd_", "\\u0070dd_").encode(),
        "utf-16": json.dumps(request).encode("utf-16"),
        "size": json.dumps({**request, "user": "x" * 2**23}).encode(),
    }[way]
    answer = http.post("/completions", content=content, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, f"vllm_xargs.{list(fields)[-1]}")
    assert len(cloud.steps()) == steps
