"""The forms in which models write tool calls, one file each.

To add one: describe it in a file of its own as a `CallFormat`, name it in `tool_formats.py: FORMATS`, and give it
a template in `tests/support/template_families.py` and texts in `test_formats.py`. The property tests then have it.
"""
