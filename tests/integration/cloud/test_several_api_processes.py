"""Several API processes of one vLLM: whichever of them a request reaches, it is answered right.

A new connection reaches any of them, and a pooled one always the same.
"""

import itertools
import threading
from array import array
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import psutil
import pytest
from cloud_support import API_PROCESSES, KEY, PARALLEL_HANDOFFS, PROMPTS, complete, new_id, wait_until
from not_opted_in import ask

from pdd_vllm_plugin.processes.folder import default_base
from pdd_vllm_plugin.processes.shared_names import _key

HEADERS = {"authorization": f"Bearer {KEY}"}
IGNORE_EOS = {"ignore_eos": True}
FACTS = [f"Room {n} of the museum shows things that were found in the year {1700 + 7 * n}." for n in range(20)]
QUESTION = "When were the things in room 13 found?"


@pytest.fixture(scope="module")
def pools(parallel):
    """Clients that keep one connection each: together they reach all processes."""
    made = [httpx.Client(base_url=parallel.base_url, headers=HEADERS, timeout=60) for _ in range(8)]
    yield itertools.cycle(made)
    for one in made:
        one.close()


def fresh(cloud, method, path, **more):
    """Ask over a new connection."""
    with httpx.Client(base_url=cloud.base_url, headers=HEADERS, timeout=60) as client:
        return client.request(method, path, **more)


class Stream:
    """An answer that is read on a thread of its own, over a connection of its own."""

    def __init__(self, cloud, **request):
        self.handoff_id = new_id()
        self.seen, self.result, self.error = 0, None, None
        self.completion_id = None

        def on_chunk(streamed):
            self.seen, self.completion_id = len(streamed.token_ids), streamed.completion_id

        def run():
            with cloud.client(timeout=120) as client:
                try:
                    self.result = complete(
                        client, handoff_id=self.handoff_id, on_chunk=on_chunk, extra_body=IGNORE_EOS, **request
                    )
                except (openai.OpenAIError, httpx.HTTPError) as error:
                    self.error = error

        self.thread = threading.Thread(target=run)
        self.thread.start()

    def begun(self, tokens=2):
        wait_until(lambda: self.seen >= tokens or self.error, seconds=60)
        assert self.error is None
        return self

    def join(self):
        self.thread.join(timeout=120)
        assert not self.thread.is_alive()
        return self.result


def link_of(handoff_id):
    """What says who has a request."""
    links = default_base().glob(f"pdd-*/{_key(handoff_id)}.*")
    return next(link for link in links if link.suffix == ".run" or ".ended." in link.name)


def owner(handoff_id):
    """Number of the process that has a request."""
    return int(str(link_of(handoff_id).readlink()).partition(".")[0])


def process_ids(handoff_id):
    """Of the API processes of the server that has this request, by their numbers."""
    return array("q", (link_of(handoff_id).parent / "counts").read_bytes())[::4].tolist()


def connected(process_id, url):
    """Has this process a connection to a client?"""
    port = httpx.URL(url).port
    found = psutil.Process(process_id).net_connections()
    return any(one.status == "ESTABLISHED" and one.laddr.port == port for one in found)


def test_every_state_is_found_from_every_process(parallel, pools):
    streams = [Stream(parallel, prompt=PROMPTS[n], budget=300, max_tokens=320) for n in range(8)]
    for one in streams:
        one.begun()
    assert len({owner(one.handoff_id) for one in streams}) > 1
    processes = process_ids(streams[0].handoff_id)
    missed = []
    for number in range(200):
        one = streams[number % 8]
        by_id, by_completion = f"/pdd/handoffs/{one.handoff_id}", f"/chat/completions/{one.completion_id}"
        path = by_completion if number % 4 == 3 else by_id
        answer = fresh(parallel, "GET", path) if number // 8 % 2 else next(pools).get(path)
        told = answer.json()
        state = told.get("pdd", told)
        if answer.status_code != 200 or state["handoff_id"] != one.handoff_id:
            missed.append((number, answer.status_code))
    assert missed == []
    assert len(processes) == API_PROCESSES
    assert sum(connected(one, parallel.base_url) for one in processes) > 1  # the pooled ones
    for one in streams:
        final = one.join()
        for _ in range(4):
            state = fresh(parallel, "GET", f"/pdd/handoffs/{one.handoff_id}").json()
            assert (state["status"], state["output_token_ids"]) == ("handed_off", final.token_ids)


def test_each_confirmation_is_true_and_every_delete_finds_its_request(parallel, pools):
    def case(number):
        stream = Stream(parallel, prompt=PROMPTS[number % 20], budget=600, max_tokens=600).begun()
        path = f"/pdd/handoffs/{stream.handoff_id}"
        answers = [fresh(parallel, "DELETE", path)]
        made = len(parallel.made_for(stream.completion_id))
        answers += [fresh(parallel, "DELETE", path), next(pools).delete(path)]
        told = [(answer.status_code, answer.json().get("confirmed")) for answer in answers]
        assert (stream.join().finish_reason, told) == ("abort", [(200, True)] * 3), answers[0].text
        return stream, made

    with ThreadPoolExecutor(4) as threads:
        cases = list(threads.map(case, range(48)))
    complete_one = Stream(parallel, budget=8, max_tokens=20).join()  # the engine steps on
    assert len(complete_one.token_ids) == 8
    false = [made for stream, made in cases if len(parallel.made_for(stream.completion_id)) != made]
    assert false == []


def test_no_id_is_accepted_twice(parallel):
    def post(handoff_id):
        body = {
            "model": "smollm2", "prompt": "Hello", "max_tokens": 2, "vllm_xargs": {"pdd_handoff": handoff_id},
        }  # fmt: skip
        return fresh(parallel, "POST", "/completions", json=body)

    streams = [Stream(parallel, prompt=PROMPTS[n], budget=3000, max_tokens=3000).begun() for n in range(4)]
    answers = [post(one.handoff_id) for one in streams for _ in range(6)]
    assert {answer.status_code for answer in answers} == {400}
    assert all("pdd_handoff" in answer.json()["error"]["param"] for answer in answers)
    for one in streams:
        fresh(parallel, "DELETE", f"/pdd/handoffs/{one.handoff_id}")
        one.join()
    assert {post(one.handoff_id).status_code for one in streams for _ in range(6)} == {400}  # deleted a moment ago
    early = new_id()
    assert fresh(parallel, "DELETE", f"/pdd/handoffs/{early}").status_code == 404
    assert {post(early).status_code for _ in range(8)} == {400}


def test_prompts_are_refined(parallel):
    def refined(number):
        handoff_id = new_id()
        xargs = {"pdd_handoff": handoff_id, "pdd_decode_budget": 2, "pdd_refine_ratio": 0.25}
        chat = [{"role": "user", "content": f"I am visitor {number}. {' '.join(FACTS)}\n\n{QUESTION}"}]
        with parallel.client(timeout=120) as client:
            client.chat.completions.create(
                model="smollm2", messages=chat, max_tokens=4, temperature=0, extra_body={"vllm_xargs": xargs}
            )
        return fresh(parallel, "GET", f"/pdd/handoffs/{handoff_id}?wait=10").json()["refinement"]["kind"]

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(refined, range(12))) == ["refined"] * 12


def test_the_number_of_states_is_bounded_over_all_processes(parallel):
    names = [
        Stream(parallel, prompt=PROMPTS[n % 20], budget=1, max_tokens=4) for n in range(3 * PARALLEL_HANDOFFS)
    ]
    for one in names:
        one.join()

    def found():
        return [one for one in names if fresh(parallel, "GET", f"/pdd/handoffs/{one.handoff_id}").is_success]

    assert 1 <= len(wait_until(lambda: len(kept := found()) <= PARALLEL_HANDOFFS and kept)) <= PARALLEL_HANDOFFS


def test_the_figures_are_those_of_all_processes(parallel):
    def scrape():
        text = fresh(parallel, "GET", parallel.base_url.removesuffix("/v1") + "/metrics").text
        return {
            name: float(value)
            for name, value in (line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("pdd_"))
        }

    name = 'pdd_requests_total{status="handed_off"}'
    before = scrape()[name]
    for one in [Stream(parallel, prompt=PROMPTS[n], budget=2, max_tokens=8) for n in range(8)]:
        one.join()
    wait_until(lambda: scrape()[name] == before + 8)
    assert {scrape()[name] for _ in range(8)} == {before + 8}  # whichever is asked
    assert scrape()["pdd_running_requests"] == 0


def test_not_opted_in_it_is_as_with_one_process(parallel, cloud):
    assert ask(parallel.base_url) == ask(cloud.base_url)


def test_any_process_streams_the_cells_of_a_prompt(parallel, pools):
    with parallel.client(timeout=60) as client:
        handoff = complete(client, budget=2, prompt=" ".join(FACTS), xargs={"pdd_kv": 1}).handoff_id
    got = [next(pools).get(f"/pdd/handoffs/{handoff}/kv", params={"to": 200}) for _ in range(8)]
    assert {answer.status_code for answer in got} == {200}
    assert len({answer.content for answer in got}) == 1
    assert fresh(parallel, "DELETE", f"/pdd/handoffs/{handoff}").status_code == 200
    assert {next(pools).get(f"/pdd/handoffs/{handoff}/kv").status_code for _ in range(8)} == {404}
