"""The command as it is installed, for tests that interrupt it."""

import sys
from pathlib import Path

PDD = [str(Path(sys.executable).with_name("pdd-device"))]
"""Not ``python -m``: where Ctrl-C hits code that an import compiles from text, as dataclasses do, Python then ends
itself with the signal, though the exit code was set (`unhandled_keyboard_interrupt` in Modules/main.c)."""
