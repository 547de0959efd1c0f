"""``pdd-device bench``: measures a device or a cloud, and writes its profile for the planner."""
