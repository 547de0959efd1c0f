"""What is asked, from wherever it comes: the command line, a file, or standard input."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pdd_core.errors import ConfigurationError

if TYPE_CHECKING:
    from pdd_llamacpp_adapter.server.prompts.prepare import ChatInput

STDIN = Path("-")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question and how to answer it."""

    prompt: str
    system: str | None = None
    max_tokens: int | None = None
    """None: all that the context has room for."""
    temperature: float = 0.0
    """0 is greedy."""
    seed: int | None = None

    def chat(self) -> ChatInput:
        """Return it as the server's own chat input."""
        from pdd_llamacpp_adapter.server.prompts.prepare import ChatInput
        from pdd_llamacpp_adapter.server.wire.sampling_fields import Sampling

        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return ChatInput(
            messages=[*system, {"role": "user", "content": self.prompt}],
            sampling=Sampling(temperature=self.temperature, seed=self.seed, max_tokens=self.max_tokens),
        )


def read_prompt(argument: str | None, file: Path | None) -> str:
    """Return the prompt: what is in `file`, then `argument`; without either, what comes on standard input.

    Raises:
        ConfigurationError: there is none, or it cannot be read as UTF-8.
    """
    if argument is None and file is None:
        if sys.stdin.isatty():
            raise ConfigurationError("what is the question? Give a prompt, --file, or text on standard input")
        file = STDIN
    parts = [] if file is None else [_text(file)]
    parts += [] if argument is None else [argument]
    prompt = "\n\n".join(part.strip() for part in parts if part.strip())
    if not prompt:
        raise ConfigurationError("the prompt is empty")
    return prompt


def _text(file: Path) -> str:
    try:
        data = sys.stdin.buffer.read() if file == STDIN else file.read_bytes()
        return data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file} cannot be read as UTF-8 text: {error}") from error
