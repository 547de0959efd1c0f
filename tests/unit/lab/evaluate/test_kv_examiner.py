from __future__ import annotations

import pytest
from evaluate_fakes import CellReader

from pdd_lab.evaluate.cases import ExamCase
from pdd_lab.evaluate.kv_examiner import OWN, KVExaminer
from pdd_lab.evaluate.kv_ways import SHARE
from pdd_lab.evaluate.results import ResultStore

FILLING = " ".join(
    f"Sentence {number} of this text says nothing that matters to anybody ." for number in range(30)
)


def case():
    hidden = "The pass key is 417."
    return ExamCase("recall", "passkey", 0, f"{FILLING}\n\n{hidden}\n\n{FILLING}", "What is the pass key ?",
                    "The pass key is", "417", 0.5, hidden)  # fmt: skip


@pytest.fixture
def cloud():
    return CellReader()


@pytest.fixture
def device(cloud):
    reader = CellReader()
    reader.vocab = cloud.vocab
    return reader


def examiner(folder, cloud, device=None):
    pair = None if device is None else ("Q4_K_M", device)
    return KVExaminer(cloud, ResultStore(folder), window=16, layers=(4, 5), heads="max", device=pair)


def test_all_cells_are_as_good_as_the_prompt(cloud, tmp_path):
    examined = examiner(tmp_path, cloud)
    record, prompt = examined.full(case())
    found = examined.handed_over(case(), record, prompt, ("k8v4", "q4_0"))
    assert [outcome["score"] for outcome in found.values()] == [1, 1]
    assert all(outcome["kept"] == len(prompt) and outcome["evidence"] for outcome in found.values())
    # one reading of the cells, of all tokens but the last: its logits are what the answer begins with
    assert cloud.cell_reads == [tuple(prompt.token_ids[:-1])]
    for cells, ids, dropped in cloud.handed:
        assert cells[0].shape[1] == len(prompt) - 1
        assert ids == (*prompt.token_ids, *record["opening"])
        assert dropped == ()


def test_the_types_differ_in_what_arrives(cloud, tmp_path):
    examined = examiner(tmp_path, cloud)
    record, prompt = examined.full(case())
    examined.handed_over(case(), record, prompt, ("f16", "k8v4", "q8_0"))
    f16, mixed, q8 = (cells for cells, _, _ in cloud.handed)
    assert (mixed[0] == q8[0]).all()
    assert (mixed[1] != q8[1]).any()
    assert (f16[0] != q8[0]).any()


def test_a_selection_drops_what_it_does_not_send(cloud, tmp_path):
    examined = examiner(tmp_path, cloud)
    record, prompt = examined.full(case())
    found = examined.handed_over(case(), record, prompt, ("selected", "oracle"))
    for outcome, (_, _, dropped) in zip(found.values(), cloud.handed, strict=True):
        assert outcome["kept"] == pytest.approx(SHARE * len(prompt), abs=1)
        assert outcome["kept"] + len(dropped) == len(prompt)
        assert len(prompt) - 1 not in dropped


def test_a_device_with_other_weights_gets_the_same_cells_and_reads_once(cloud, device, tmp_path):
    examined = examiner(tmp_path, cloud, device)
    record, prompt = examined.full(case())
    found = examined.handed_over(case(), record, prompt, ("k8v4",))
    assert set(found) == {"k8v4", "Q4_K_M k8v4", f"Q4_K_M {OWN}"}
    (of_cloud,), (of_device,) = cloud.handed, device.handed
    assert (of_cloud[0][0] == of_device[0][0]).all()
    assert device.cell_reads == []
    assert device.forces == [(*prompt.token_ids, *record["opening"])]


def test_what_is_known_is_not_measured_again(cloud, device, tmp_path):
    first = examiner(tmp_path, cloud)
    record, prompt = first.full(case())
    before = first.handed_over(case(), record, prompt, ("k8v4",))
    again = examiner(tmp_path, cloud, device)
    record, prompt = again.full(case())
    reads = len(cloud.cell_reads)
    found = again.handed_over(case(), record, prompt, ("k8v4",))
    assert found["k8v4"] == before["k8v4"]
    assert (len(cloud.handed), len(device.handed)) == (1, 1)
    assert len(cloud.cell_reads) == reads + 1
    assert again.handed_over(case(), record, prompt, ("k8v4",)) == found
    assert len(cloud.cell_reads) == reads + 1


def test_a_run_that_is_stopped_keeps_what_was_measured(cloud, tmp_path):
    examined = examiner(tmp_path, cloud)
    record, prompt = examined.full(case())
    behind = cloud.behind

    def once(*arguments, **options):
        cloud.behind = None
        return behind(*arguments, **options)

    cloud.behind = once
    with pytest.raises(TypeError):
        examined.handed_over(case(), record, prompt, ("k8v4", "q8_0"))
    assert list(ResultStore(tmp_path).record(case())["outcomes"]) == ["kv1-k8v4"]
