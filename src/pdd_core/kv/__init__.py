"""A prompt's KV cache on its way from the cloud to the device: how it is packed, checked and named.

A cell is what llama.cpp calls one token's keys and values of all layers. `geometry` says what a model's cells look
like, `packing` packs rows of them, `pieces` cuts a prompt into pieces of `PIECE_TOKENS` cells, and `frames` is
the form of pieces inside the stream. Nothing here knows an engine.
"""
