"""A vLLM instance and the devices around it without an engine: the time of every step comes from a profile.

What is modelled: continuous batching, chunked prefill within a budget of tokens per step, `max_num_seqs`, a KV
cache of blocks with preemption by recomputation, a prefix cache, all in the order of vLLM's own scheduler. What is
not: speculative decoding, priorities, encoder inputs, data and pipeline parallelism.
"""
