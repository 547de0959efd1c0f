"""Where an answer ends is decided once, for both sides."""

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from pdd_llamacpp_adapter.request import AnswerRequest
from pdd_llamacpp_adapter.session.stop_ids import stop_ids

IDS = st.frozensets(st.integers(0, 20), max_size=4)


@given(cloud=IDS | st.none(), device=IDS | st.none(), asked=IDS, ignore_eos=st.booleans())
def test_the_cloud_decides_then_the_device_and_the_client_in_any_case(cloud, device, asked, ignore_eos):
    request = AnswerRequest(prompt_token_ids=[1], max_tokens=1, stop_token_ids=tuple(asked), ignore_eos=ignore_eos)
    told = None if cloud is None else SimpleNamespace(tokenizer=SimpleNamespace(eos_ids=tuple(cloud)))
    vocab = None if device is None else SimpleNamespace(stop_ids=device)
    found = stop_ids(request, told=told, vocab=vocab)
    if ignore_eos:
        assert found == asked
    elif cloud is not None:
        assert found == cloud | asked
    else:
        assert found == (device or frozenset()) | asked
