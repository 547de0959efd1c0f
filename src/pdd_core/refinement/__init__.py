"""Prompt refinement: which tokens of a prompt stay, and whether the shorter prompt lost something.

The refiners need numpy; importing this package does not.
"""
