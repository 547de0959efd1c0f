"""``pdd-device demo``: one answer made in three ways, side by side, with real engines."""

from pdd_cli.demo.run import run_demo
from pdd_cli.demo.scenario import Scenario

__all__ = ["Scenario", "run_demo"]
