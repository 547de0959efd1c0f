"""Request traces: who asked when, for how many tokens; no text."""

from pdd_lab.traces.formats import FORMATS
from pdd_lab.traces.synthetic import SYNTHETIC, synthesise
from pdd_lab.traces.trace import Trace
from pdd_lab.traces.trace_file import detect, load

__all__ = ["FORMATS", "SYNTHETIC", "Trace", "detect", "load", "synthesise"]
