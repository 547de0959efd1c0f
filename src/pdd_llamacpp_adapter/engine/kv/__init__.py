"""A prompt's KV cache that was computed elsewhere, as llama.cpp takes it in. Pure, but for three modules.

`key_order` says how keys lie in a GGUF model, `kv_support` whether cells fit one, and `sequence_state` writes and
reads llama.cpp's own form of them. `context_cells`, `model_facts` and `ggml` call
llama.cpp.
"""
