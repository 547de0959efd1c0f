"""``pdd-device generate``: one answer on the terminal."""
