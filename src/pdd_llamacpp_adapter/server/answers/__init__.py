"""What the routes that answer share: the server, and an answer from its place in the queue to its end."""
