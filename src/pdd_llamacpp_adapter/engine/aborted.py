"""How a cancelled computation comes back from llama.cpp."""


class DecodeAborted(Exception):
    """llama_decode stopped because it was told to. Never leaves this package."""
