"""In the worker: keeps the KV cache of prompts whose requests ask for it, until the device has fetched it."""
