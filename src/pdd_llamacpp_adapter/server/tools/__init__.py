"""Tools in OpenAI's API: what they mean for a prompt, a grammar, and the reading of an answer."""
