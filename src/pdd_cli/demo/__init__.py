"""``pdd-device demo``: one answer made in several ways, side by side, with real engines."""
