"""``pdd-device replay``: a request trace against a live server, or against the simulator."""
