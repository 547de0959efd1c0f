"""``pdd-device demo``: one answer made in three ways, side by side, with real engines."""
