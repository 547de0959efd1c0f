"""Who has an id: claims, their ends, and what happens where the folder fails."""

import shutil

import pytest
from api_processes import NO_PROCESS

from pdd_vllm_plugin.processes.folder import SharedFolder
from pdd_vllm_plugin.processes.shared_counts import SharedCounts
from pdd_vllm_plugin.processes.shared_names import SharedNames

ID = "a" * 32


@pytest.fixture
def folder(base):
    made = SharedFolder(base, "a")
    yield made
    made.leave()


@pytest.fixture
def names(folder):
    return [SharedNames(folder.fd, SharedCounts(folder.fd, rank, 3)) for rank in range(3)]


def owners(names, name=ID, *, completions=False):
    found = {tuple(one.owners(name, completions=completions)) for one in names}
    assert len(found) == 1  # all say the same
    return list(found.pop())


def test_one_process_has_an_id_and_all_know_which(names):
    assert names[1].claim(ID)
    assert names[1].claim(ID)  # it has it already
    assert [one.is_taken(ID) for one in names] == [True, False, True]
    assert not names[0].claim(ID)
    assert owners(names) == [1]


def test_an_ended_request_leaves_its_id_to_any_process_and_keeps_its_state(names):
    names[1].claim(ID)
    names[1].ended(ID)
    assert not any(one.is_taken(ID) for one in names)
    assert owners(names) == [1]
    assert names[2].claim(ID)
    assert owners(names) == [2]
    names[2].ended(ID)
    assert owners(names) == [2]  # the last one's counts
    names[2].free(ID, ended=True)
    assert owners(names) == [1]
    names[1].free(ID, ended=True)
    assert owners(names) == []


def test_a_deleted_id_stays_taken(names):
    names[0].claim(ID)
    names[0].ended(ID)
    assert names[0].bury(ID)
    assert names[1].is_taken(ID)
    assert owners(names) == [0]
    names[0].free(ID, ended=False)
    assert names[1].claim(ID)


def test_a_deletion_of_an_ended_state_does_not_take_the_id_from_its_next_request(names):
    names[0].claim(ID)
    names[0].ended(ID)
    names[1].claim(ID)
    assert not names[0].bury(ID)
    assert owners(names) == [1]


def test_what_a_dead_process_had_can_be_taken(names):
    names[2].claim(ID)
    names[2]._counts._rows[2 * 4] = NO_PROCESS
    assert owners(names[:2]) == [2]  # its claim says whose the state was
    assert not names[0].is_taken(ID)
    assert names[0].claim(ID)
    assert not names[1].claim(ID)


def test_while_another_process_clears_up_after_a_dead_one_the_id_is_refused(names):
    names[2].claim(ID)
    names[2]._counts._rows[2 * 4] = NO_PROCESS
    real = names[1]._target
    found = []

    def look(link):  # between its look under the lock and its removal
        if not found:
            found.append(names[0].claim(ID))
        return real(link)

    target = real(f"{_key()}.run")
    names[1]._target = look
    assert names[1]._remove_left_over(f"{_key()}.run", target)
    assert found == [False]
    names[1]._target = real
    assert names[0].claim(ID)


def _key():
    from pdd_vllm_plugin.processes import shared_names

    return shared_names._key(ID)


def test_a_new_claim_is_not_taken_for_what_a_dead_process_left(names):
    names[2].claim(ID)
    left = names[0]._target(f"{_key()}.run")
    names[2].free(ID, ended=False)
    names[1].claim(ID)
    names[0]._remove_left_over(f"{_key()}.run", left)
    assert owners(names) == [1]


def test_completions_by_their_ids_first_those_there_are(names):
    completion = "cmpl-" + "x" * 20
    names[0].name_completion(completion, deleted=True)
    assert owners(names, completion, completions=True) == [0]
    names[1].name_completion(completion)
    names[2].name_completion(completion)
    assert owners(names, completion, completions=True) == [1, 2]
    assert owners(names, completion) == []
    names[1].unname_completion(completion)
    names[2].unname_completion(completion)
    names[0].unname_completion(completion, deleted=True)
    assert owners(names, completion, completions=True) == []


def test_no_id_can_be_read_in_the_folder(names, folder):
    names[0].claim(ID)
    names[0].name_completion("cmpl-secret")
    texts = [f"{path.name} {path.readlink()}" for path in folder.path.iterdir() if path.is_symlink()]
    assert len(texts) == 2
    assert not any(ID in text or "secret" in text for text in texts)


def test_any_string_is_a_name(names):
    for name in ("../../etc/passwd", "a\0b", "\ud800", "", "x" * 5000):
        assert names[0].claim(name)
        assert owners(names, name) == [0]


def test_where_the_folder_is_gone_each_goes_on_with_what_it_knows(names, folder, caplog):
    names[1].claim(ID)
    shutil.rmtree(folder.path)
    for one in names:
        assert one.claim(ID)
        assert not one.is_taken(ID)
        one.ended(ID)
        assert one.bury(ID)
        one.free(ID, ended=True)
        one.name_completion("c")
        one.unname_completion("c")
        assert one.owners(ID, completions=True) == []
    assert caplog.text.count("can no longer tell each other") == 3  # once each
