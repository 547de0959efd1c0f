from hypothesis import given
from hypothesis import strategies as st

from pdd_vllm_plugin.shared_store import names

ID, OTHER = "a" * 32, "b" * 32


@given(st.text(min_size=1), st.binary())
def test_what_is_sealed_is_read_with_the_same_name_only(name, content):
    sealed = names.seal(name, content)
    assert names.unseal(name, sealed) == content
    assert len(content) < 8 or names.unseal(name + "x", sealed) != content


def test_the_same_content_is_never_sealed_to_the_same_bytes():
    assert names.seal(ID, b"x" * 20) != names.seal(ID, b"x" * 20)


def test_a_completions_member_is_always_the_same_and_gives_the_handoff_id_back():
    member = names.seal_handoff_id("chatcmpl-1", ID)
    assert member == names.seal_handoff_id("chatcmpl-1", ID) != names.seal_handoff_id("chatcmpl-1", OTHER)
    assert names.unseal("chatcmpl-1", member) == ID.encode()


def test_keys_differ_by_kind_and_show_no_name():
    keys = {make(ID) for make in (names.state_key, names.completion_key, names.gone_key)}
    assert len(keys) == 3
    assert not [key for key in keys if ID in key or not key.startswith(names.PREFIX)]


def test_any_path_has_a_key():
    assert names.state_key("\udcff").startswith(names.STATES)
