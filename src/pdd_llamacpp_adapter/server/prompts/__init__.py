"""From what a client asks for to what a session takes: the prompt, its grammar, and the parser of its answer."""
