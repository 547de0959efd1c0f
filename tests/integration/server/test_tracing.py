"""One trace through an openai client, the device's server, and vLLM with the plugin."""

import secrets

from cloud_support import KEY
from spans import exporter, said

from pdd_llamacpp_adapter import PDDevice

WORDS = ("capital", "France", "Paris")


def test_an_answers_trace_leads_from_its_client_through_the_device_to_vllm(cloud, collector, prepared):
    exporter().clear()
    trace_id, span_id = secrets.token_hex(16), secrets.token_hex(8)
    patience = {"first_token_s": 120.0, "late_s": float("inf")}
    with PDDevice(
        prepared.gguf, cloud_url=cloud.base_url, cloud_api_key=KEY, decode_budget=1, patience=patience,
        n_ctx=1024, tracing=True,
    ) as device:  # fmt: skip
        stream = device.chat.completions.create(
            model=device.model,
            messages=[{"role": "user", "content": "The capital of France is Paris. Say it again."}],
            max_tokens=12,
            temperature=0,
            stream=True,
            extra_headers={"traceparent": f"00-{trace_id}-{span_id}-01"},
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    made = {span.name: span for span in exporter().get_finished_spans()}
    whole, cloud_part, device_part = (made[f"pdd.{name}"] for name in ("answer", "cloud_part", "device_part"))
    assert {f"{span.context.trace_id:032x}" for span in made.values()} == {trace_id}
    assert f"{whole.parent.span_id:016x}" == span_id
    assert cloud_part.parent == device_part.parent == whole.context
    assert (whole.attributes["pdd.cloud_tokens"], cloud_part.attributes["pdd.end"]) == (1, "budget")
    assert whole.attributes["pdd.device_tokens"] == device_part.attributes["gen_ai.usage.output_tokens"] > 0
    assert "pdd.switch" in [event.name for event in whole.events]
    assert whole.start_time <= cloud_part.start_time < cloud_part.end_time <= whole.end_time

    of_vllm = collector.wait_for(trace_id, {"llm_request", "pdd.handoff"})
    parent = f"{cloud_part.context.span_id:016x}"
    assert {span.parent_span_id.hex() for span in of_vllm.values()} == {parent}
    attributes = {one.key: one.value for one in of_vllm["pdd.handoff"].attributes}
    assert attributes["pdd.status"].string_value == "handed_off"
    assert attributes["pdd.decode_budget"].int_value == attributes["gen_ai.usage.output_tokens"].int_value == 1
    own = {one.key: one.value for one in of_vllm["llm_request"].attributes}
    assert attributes["gen_ai.request.id"].string_value in own["gen_ai.request.id"].string_value

    assert text.strip()
    words = [*said(made.values()), *map(str, of_vllm.values())]
    assert not [word for word in words if text.strip() in word or any(one in word for one in WORDS)]
