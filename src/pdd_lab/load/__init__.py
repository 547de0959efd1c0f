"""Requests against a live server, timed: what `bench cloud` and `replay` measure with."""
