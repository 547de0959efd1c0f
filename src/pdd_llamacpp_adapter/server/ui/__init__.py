"""Pages for people: a chat at ``/``, the server's state at ``/status``. Their files are in `files`."""
