"""HTTP bodies and errors, as OpenAI has them. Knows of no answer."""
