"""The command line, `pdd-device`. Nothing here imports an engine before a command needs it."""
