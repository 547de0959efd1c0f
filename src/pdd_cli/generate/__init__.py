"""``pdd-device generate``: one answer on the terminal."""

from pdd_cli.generate.question import Question, read_prompt
from pdd_cli.generate.run import run_generate

__all__ = ["Question", "read_prompt", "run_generate"]
