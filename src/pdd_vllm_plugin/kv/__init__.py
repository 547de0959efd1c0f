"""The prompts' KV caches on their way to devices.

In the worker, `rank_cells` says what this rank has of each cell. `keeper` takes the cells of a prompt that is
complete, `packer` packs them, and `shelf` keeps them, each prompt in a file of its own. `shelf_file` is both
sides' code of such a file: the API server, another process, reads what the worker has written.
"""
