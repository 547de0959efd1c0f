"""``/v1/completions``: the older API, of prompts without a chat."""
