"""The example of a fleet as a module: tests start its router and its replicas as it does itself."""

import importlib.util
from pathlib import Path

_PATH = Path(__file__).parents[2] / "examples/fleet/fleet.py"
_SPEC = importlib.util.spec_from_file_location("fleet_example_program", _PATH)
fleet = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(fleet)
