"""Whether llama.cpp stores cells as it is known to: a context is given a known state, and asked for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pdd_core.errors import DeviceEngineFailed, InvalidCells
from pdd_core.kv.cell_types import CellType
from pdd_llamacpp_adapter.engine.kv.sequence_state import read, written

if TYPE_CHECKING:
    from pdd_llamacpp_adapter.engine.kv.context_cells import ContextCells

VERIFIED = frozenset({"0.3.36"})
"""Releases of llama-cpp-python whose llama.cpp was read: the form of a sequence's state, the rotation of quantised
caches, and the order of keys. tests/integration/device/test_kv_layout.py says what to do with a new one."""
_START, _CELLS = 5, 3
_ERROR = {CellType.F16: 1e-3, CellType.Q8_0: 0.02, CellType.Q4_0: 0.2}
"""Most that a type may lose of random numbers: root mean square, relative."""


def layout_fault(cells: ContextCells) -> str | None:
    """Return why cells must not be written to this context, which has to be empty; None if all is well."""
    layout = cells.layout
    shape = (layout.shape.num_layers, _CELLS, layout.shape.num_kv_heads, layout.shape.head_size)
    random = np.random.default_rng(0)
    keys, values = (random.standard_normal(shape, dtype=np.float32) for _ in range(2))
    try:
        cells.add(_START, written(layout, _START, keys, values), _CELLS)
        found = read(layout, cells.waiting())
    except (DeviceEngineFailed, InvalidCells) as error:
        return f"llama.cpp does not give back a known state: {error}"
    finally:
        cells.drop()
    if found.positions.tolist() != list(range(_START, _START + _CELLS)):
        return "llama.cpp gives back a known state with other positions"
    for ours, theirs in ((keys, found.keys), (values, found.values)):
        if not np.sqrt(np.mean((ours - theirs) ** 2) / np.mean(ours**2)) < _ERROR[layout.kind]:
            return "llama.cpp gives back a known state with other numbers"
    return None
