"""``pdd-device doctor``: what is missing, what would go wrong, and how to mend it."""

from pdd_cli.doctor.report import report

__all__ = ["report"]
