"""Request traces: who asked when, for how many tokens; no text. Files need the extra `bench`."""

from pdd_core.traces.load import FORMATS, detect, load
from pdd_core.traces.synthetic import SYNTHETIC, synthesise
from pdd_core.traces.trace import Trace

__all__ = ["FORMATS", "SYNTHETIC", "Trace", "detect", "load", "synthesise"]
