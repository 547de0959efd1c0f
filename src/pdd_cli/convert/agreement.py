"""How closely the two forms of a model agree: both read the same prompts, and their likelihoods are compared."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pdd_core.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pdd_llamacpp_adapter.engine.llama_sequence import LlamaSequence

FILE = "agreement.json"
"""In the cloud's folder."""
BOUND = 0.03
"""Nats. SmolLM2-135M, Qwen2.5-Coder-0.5B and Gemma-3-270M differ by 0.0018 to 0.0025 when converted rightly: F16
rounds, float32 hardly. A tenth of their rotary base gives 0.04 to 0.15, a lost scaling of positions 0.1 to 1.8, a
lost layer 0.4 to 4.6, lost biases 11. What shows only behind thousands of tokens is found by the names of keys and
tensors instead."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Over all positions of all prompts."""

    prompts: int
    same_next: int
    """Prompts behind which both find the same token the likeliest."""
    mean: float
    """Nats: the difference of a token's log-likelihood, averaged by its likelihood on the device."""
    most: float
    """Nats: the largest such average of one position."""

    def __str__(self) -> str:
        return (
            f"both predict the same token behind {self.same_next} of {self.prompts} prompts; "
            f"log-likelihoods differ by {self.mean:.4f} on average, {self.most:.4f} at most"
        )

    def check(self) -> None:
        """Pass if the two forms are the same model.

        Raises:
            ModelError: they are not.
        """
        if not self.mean <= BOUND:  # nor if it is no number
            raise ModelError(f"the two forms disagree: {self}; {BOUND} on average is what rounding explains")

    def save(self, folder: Path) -> None:
        """Write it into the cloud's `folder`."""
        (folder / FILE).write_text(json.dumps(asdict(self)))

    @classmethod
    def of(cls, folder: Path) -> Agreement:
        """Return what was measured when the cloud's `folder` was made."""
        return cls(**json.loads((folder / FILE).read_text()))


def agreement(model: Any, sequence: LlamaSequence, prompts: Sequence[Sequence[int]]) -> Agreement:
    """Compare transformers' `model` with the device's on the ids of `prompts`."""
    same, distances = 0, list[np.ndarray]()
    for ids in prompts:
        device, cloud = _log_likelihoods(_logits(sequence, ids)), _log_likelihoods(_logits_of_cloud(model, ids))
        same += int(device[-1].argmax() == cloud[-1].argmax())
        distances.append((np.exp(device) * np.abs(device - cloud)).sum(axis=-1))
    found = np.concatenate(distances)
    return Agreement(len(prompts), same, float(found.mean()), float(found.max()))


def _logits(sequence: LlamaSequence, ids: Sequence[int]) -> np.ndarray:
    sequence.rewind(0)
    sequence.decode(ids, want_logits=True, outputs=range(len(ids)))
    return np.stack([np.array(sequence.context.logits_at(index)) for index in range(len(ids))])


def _logits_of_cloud(model: Any, ids: Sequence[int]) -> np.ndarray:
    import torch

    with torch.inference_mode():
        logits: np.ndarray = model(torch.tensor([list(ids)])).logits[0].numpy()
    return logits


def _log_likelihoods(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    likelihoods: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return likelihoods
