"""DELETE: the engine's word that no further token is made, wherever the request is."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from cloud_support import PROMPTS, complete, new_id, state_of, wait_until

from pdd_vllm_plugin.tombstones import MAX_TOMBSTONES, TOMBSTONE_TTL_S

LONG = [200 + i % 3000 for i in range(2500)]


def delete(client, handoff_id):
    return client.delete(f"/pdd/handoffs/{handoff_id}", cast_to=object)


class Background:
    """A stream read on a thread of its own."""

    def __init__(self, cloud, **request):
        self.handoff_id = new_id()
        self.result = self.error = None

        def run():
            with cloud.client() as client:
                try:
                    self.result = complete(client, handoff_id=self.handoff_id, **request)
                except openai.OpenAIError as error:
                    self.error = error

        self._thread = threading.Thread(target=run)
        self._thread.start()

    def join(self):
        self._thread.join(timeout=60)
        assert not self._thread.is_alive()
        return self.result


def test_after_a_confirmed_delete_the_scheduler_makes_no_token(cloud, client):
    for prompt in PROMPTS[:4]:
        stream = Background(cloud, budget=500, max_tokens=500, prompt=prompt, extra_body={"ignore_eos": True})
        wait_until(lambda stream=stream: seen(client, stream.handoff_id) >= 3)
        request_id = state_of(client, stream.handoff_id)["request_id"]
        assert delete(client, stream.handoff_id)["confirmed"] is True
        made = len(cloud.made_for(request_id))
        # the engine keeps stepping for somebody else
        complete(client, budget=8, prompt="Meanwhile another request runs", max_tokens=20)
        assert len(cloud.made_for(request_id)) == made
        final = stream.join()
        assert final.finish_reason == "abort"
        assert len(final.token_ids) <= made


def seen(client, handoff_id):
    try:
        return len(state_of(client, handoff_id)["output_token_ids"])
    except openai.NotFoundError:
        return 0


def test_before_the_first_token(cloud, client):
    stream = Background(cloud, budget=50, max_tokens=60, prompt=LONG, extra_body={"cache_salt": new_id()})
    wait_until(lambda: exists(client, stream.handoff_id))
    time.sleep(0.2)  # into its prefill step
    began = time.monotonic()
    answer = delete(client, stream.handoff_id)
    assert time.monotonic() - began < 12  # bounded, whatever the step takes
    assert answer["deleted"] is True
    assert answer["confirmed"] in {True, False}
    final = stream.join()
    assert final.token_ids == []
    wait_until(lambda: delete(client, stream.handoff_id)["confirmed"], seconds=120)  # when the step has ended


def exists(client, handoff_id):
    try:
        return state_of(client, handoff_id)
    except openai.NotFoundError:
        return None


def test_a_queued_request_is_cancelled_and_the_running_ones_go_on(cloud, client):
    running = [
        Background(cloud, budget=500, max_tokens=500, prompt=f"{PROMPTS[1]} {i}", extra_body={"ignore_eos": True})
        for i in range(8)
    ]  # as many as run at once, for longer than it takes to start them
    for each in running:
        wait_until(lambda each=each: exists(client, each.handoff_id))
    wait_until(lambda: any(step["running"] == 8 for step in cloud.steps()[-3:]))
    queued = Background(cloud, budget=30, max_tokens=40, prompt="A request that waits its turn")
    wait_until(lambda: exists(client, queued.handoff_id))
    assert delete(client, queued.handoff_id)["confirmed"] is True
    assert queued.join().token_ids == []
    for each in running:
        before = seen(client, each.handoff_id)
        wait_until(lambda each=each, before=before: seen(client, each.handoff_id) > before)
    for each in running:
        delete(client, each.handoff_id)
    assert all(each.join().finish_reason == "abort" for each in running)


def test_a_second_delete_is_fine(client):
    streamed = complete(client, budget=2, prompt=PROMPTS[0])
    for _ in range(2):
        answer = delete(client, streamed.handoff_id)
        assert (answer["deleted"], answer["confirmed"]) == (True, True)
    with pytest.raises(openai.NotFoundError):
        state_of(client, streamed.handoff_id)


def test_one_that_overtakes_its_post_refuses_it(client):
    handoff_id = new_id()
    with pytest.raises(openai.NotFoundError, match="within a minute is refused"):
        delete(client, handoff_id)
    with pytest.raises(openai.BadRequestError, match="deleted a moment ago") as caught:
        complete(client, budget=2, handoff_id=handoff_id)
    assert caught.value.param == "vllm_xargs.pdd_handoff"


def test_a_flood_of_others_does_not_make_it_forgotten(cloud, client):
    overtaken, done = new_id(), complete(client, budget=2, prompt=PROMPTS[0]).handoff_id
    assert delete(client, done)["confirmed"] is True
    with pytest.raises(openai.NotFoundError):
        delete(client, overtaken)
    times = MAX_TOMBSTONES // 4 + 1

    def flood(_):
        with cloud.client() as flooder:
            for _ in range(times):
                with pytest.raises(openai.NotFoundError, match="within a minute is refused"):
                    delete(flooder, new_id())

    begun = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(flood, range(4)))
    if time.monotonic() - begun > TOMBSTONE_TTL_S / 2:
        pytest.skip("this machine takes longer for so many than they are remembered")
    with pytest.raises(openai.BadRequestError, match="deleted a moment ago"):
        complete(client, budget=2, handoff_id=overtaken)
    assert delete(client, done)["confirmed"] is True  # as the first time


def test_equal_request_ids_do_not_end_each_other(cloud, client):
    headers = {"X-Request-Id": "the-same-id-for-two-requests"}
    streams = [
        Background(
            cloud, budget=budget, max_tokens=500, prompt=prompt,
            extra_body={"ignore_eos": True}, extra_headers=headers,
        )
        for budget, prompt in ((400, PROMPTS[1]), (60, PROMPTS[2]))
    ]  # fmt: skip
    for stream in streams:
        wait_until(lambda stream=stream: seen(client, stream.handoff_id) >= 2)
    with pytest.raises(openai.ConflictError, match="use the handoff id"):
        client.chat.completions.delete(state_of(client, streams[0].handoff_id)["request_id"])
    assert delete(client, streams[0].handoff_id)["confirmed"] is True
    assert streams[0].join().finish_reason == "abort"
    survivor = streams[1].join()
    assert (len(survivor.token_ids), survivor.stop_reason) == (60, "pdd_handoff")


def test_an_id_in_use_is_refused_and_its_request_goes_on(cloud, client):
    stream = Background(cloud, budget=120, max_tokens=130, prompt=PROMPTS[1], extra_body={"ignore_eos": True})
    wait_until(lambda: seen(client, stream.handoff_id) >= 2)
    with pytest.raises(openai.BadRequestError, match="in use") as caught:
        complete(client, budget=2, handoff_id=stream.handoff_id)
    assert caught.value.param == "vllm_xargs.pdd_handoff"
    assert len(stream.join().token_ids) == 120


def test_a_client_that_leaves_frees_its_slot(cloud, client):
    handoff_id = new_id()
    stream = client.completions.create(
        model="smollm2", prompt=PROMPTS[1], max_tokens=500, stream=True,
        extra_body={"vllm_xargs": {"pdd_handoff": handoff_id, "pdd_decode_budget": 500}, "ignore_eos": True},
    )  # fmt: skip
    next(iter(stream))
    stream.close()
    state = wait_until(lambda: (s := state_of(client, handoff_id))["status"] == "aborted" and s)
    complete(client, budget=8, prompt="Meanwhile another request runs", max_tokens=20)
    made = len(cloud.made_for(state["request_id"]))
    complete(client, budget=8, prompt="Meanwhile another request runs", max_tokens=20)
    assert len(cloud.made_for(state["request_id"])) == made < 500
