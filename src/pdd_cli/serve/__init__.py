"""``pdd-device serve``: the local server, on the command line."""
