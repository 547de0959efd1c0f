"""Request traces: who asked when, for how many tokens; no text."""

from pdd_lab.traces.formats import FORMATS
from pdd_lab.traces.synthetic import SYNTHETIC, synthesise
from pdd_lab.traces.trace import Trace
from pdd_lab.traces.trace_file import load
from pdd_lab.traces.trace_options import AS_ITS_FIELDS_SAY, TraceOptions

__all__ = ["AS_ITS_FIELDS_SAY", "FORMATS", "SYNTHETIC", "Trace", "TraceOptions", "load", "synthesise"]
