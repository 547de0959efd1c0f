"""Cells that are taken out of llama.cpp and put in again are those of its own prefill."""

from __future__ import annotations

import numpy as np
import pytest

from pdd_lab.evaluate.kv_model import KVModel
from pdd_lab.evaluate.kv_ways import sent
from pdd_lab.evaluate.quantised_device import quantised_gguf
from pdd_lab.evaluate.statistics import divergence


@pytest.fixture(scope="module")
def model(gguf):
    model = KVModel(gguf, n_ctx=512, threads=1)
    yield model
    model.close()


@pytest.fixture(scope="module")
def ids(model):
    return model.vocab.tokenize("The quick brown fox jumps over 13 lazy dogs. " * 10 + "Nobody saw it. " * 20)[
        :150
    ]


@pytest.fixture(scope="module")
def answer(model, ids):
    model.read(ids, window=16, layers=[14])
    return model.answer(12, opening=[], after=16)[0]


@pytest.fixture(scope="module")
def own(model, ids, answer):
    """The answer's log-probabilities behind what the model read itself."""
    return model.forced(ids, answer)


def test_the_models_own_cells_go_on_as_its_prefill(model, ids, answer, own):
    rows = model.behind(model.cells(ids[:-1]), ids, answer)
    # the last token of the prompt is in another batch: other kernels
    np.testing.assert_allclose(rows, own, atol=0.05)


def test_what_was_in_memory_before_does_not_matter(model, ids, answer, own):
    model.forced([5, 6, 7], answer)
    keys, values = model.cells(ids[:-1])
    model.forced(ids, answer)
    again = model.cells(ids[:-1])
    assert (keys == again[0]).all()
    assert (values == again[1]).all()


def test_fewer_bits_are_farther_away(model, ids, answer, own):
    cells = model.cells(ids[:-1])
    away = [
        divergence(own, model.behind(sent(*cells, way), ids, answer)).mean()
        for way in ("f16", "q8_0", "k8v4", "q4_0")
    ]
    assert away[0] < away[1] < away[2] < 0.1
    assert away[2] < away[3]


def test_cells_that_are_dropped_are_missed(model, ids, answer, own):
    cells = model.cells(ids[:-1])
    few = model.behind(cells, ids, answer, dropped=range(4, 140))
    whole = model.behind(cells, ids, answer)
    assert divergence(own, few).mean() > 10 * divergence(own, whole).mean()


def test_a_quantised_device_follows_the_cloud_better_with_its_cells(model, gguf, ids, answer, own, tmp_path):
    device = KVModel(quantised_gguf(gguf, "Q4_0", tmp_path), n_ctx=512, threads=1)
    try:
        with_cells = device.behind(model.cells(ids[:-1]), ids, answer)
        alone = device.forced(ids, answer)
    finally:
        device.close()
    assert divergence(own, with_cells).mean() < divergence(own, alone).mean()
