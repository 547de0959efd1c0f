"""The forms in which models write tool calls, one file each.

To add one: describe it in a file of its own as a `CallFormat`, name it in `tool_formats.py: FORMATS`, and give it a
template and texts in the tests (`template_families.py`, `test_tool_calls.py`), whose property tests then include it.
"""
