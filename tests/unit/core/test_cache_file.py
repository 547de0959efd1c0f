"""Whatever lies in the place of a file of the cache, the program goes on."""

import json
import os

import pytest
from example_count import examples
from hypothesis import given
from hypothesis import strategies as st

from pdd_core.cache_file import json_object, set_aside
from pdd_core.planner.store import MAX_BYTES, MAX_FILES, SCHEMA_VERSION, Store

WELL = json.dumps({"schema_version": SCHEMA_VERSION, "level": 1.5, "count": 3})


def folder(path):
    path.mkdir()


def pipe(path):
    os.mkfifo(path)


def link_to_nowhere_near(path):
    path.symlink_to(path)


def device(path):
    path.symlink_to("/dev/zero")


def too_large(path):
    path.write_text(WELL + " " * MAX_BYTES)


def text(content):
    def write(path):
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return write


@pytest.mark.parametrize(
    "lies_there",
    [
        folder,
        pipe,
        link_to_nowhere_near,
        device,
        too_large,
        text(b"\xff\xfe{}"),
        text(""),
        text("[" * 100_000),
        text('{"a":' * 100_000),
        text('{"schema_version": "1.0", "level": NaN}'),
        text('{"schema_version": "1.0", "level": -Infinity}'),
        text('{"schema_version": "1.0", "level": 1e999}'),
        text('{"schema_version": "1.0", "level": ' + "9" * 20 + "}"),
        text('{"schema_version": "1.0", "level": ' + "9" * 5000 + "}"),
        text('{"schema_version": "2.0"}'),
        text('["schema_version"]'),
        text("null"),
        text('{"schema_version": "1.0", "level": "' + "\\ud800\\n" * 1000 + '"}'),
    ],
)
def test_what_cannot_be_read_is_set_aside_with_one_line(tmp_path, caplog, lies_there):
    store, path = Store(tmp_path), tmp_path / "device-0.json"
    lies_there(path)
    taken = []

    def take(data):
        taken.append(float(data["level"]))

    assert not store.restore(path, take)
    assert not taken
    (record,) = caplog.records
    assert "device-0.json is set aside" in record.getMessage()
    assert "\n" not in record.getMessage()
    assert len(record.getMessage().encode()) < 300 + len(str(path))
    assert not os.path.lexists(path)
    store.save(path, {"level": 2})
    assert store.restore(path, take)
    assert taken == [2]
    assert len(caplog.records) == 1


def test_what_cannot_be_renamed_is_told_and_left(tmp_path, caplog):
    (tmp_path / "a.json.unreadable").mkdir()
    (tmp_path / "a.json.unreadable" / "mine").touch()
    (tmp_path / "a.json").mkdir()
    set_aside(tmp_path / "a.json", ValueError("no file"))
    assert (tmp_path / "a.json").is_dir()
    assert len(caplog.records) == 1


def test_any_error_of_who_takes_the_content_is_the_files(tmp_path, caplog):
    def take(_):
        raise OverflowError("int too large to convert to float")

    (tmp_path / "device-0.json").write_text(WELL)
    assert not Store(tmp_path).restore(tmp_path / "device-0.json", take)
    assert "OverflowError" in caplog.text


def test_files_set_aside_are_bounded(tmp_path):
    store = Store(tmp_path)
    for number in range(MAX_FILES + 5):
        path = store.path("cloud", str(number))
        path.write_text("{")
        assert not store.restore(path, dict)
    store.save(store.path("cloud", "m"), {})
    assert len(list(tmp_path.iterdir())) == MAX_FILES + 1


@examples(100)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        ).map(lambda value: json.dumps(value).encode()),
    )
)
def test_a_file_is_an_object_or_a_reason(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("cache") / "f.json"
    path.write_bytes(content)
    try:
        found = json_object(path, 10_000)
    except ValueError:
        return
    assert found == json.loads(content)
