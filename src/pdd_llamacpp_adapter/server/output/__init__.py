"""What the text of an answer turns out to be: words, thoughts, tool calls."""
