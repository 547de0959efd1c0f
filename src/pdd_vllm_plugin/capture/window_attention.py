"""The scores themselves: attention of a few queries over all keys, as the model computes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from torch import Tensor

_MOST_ELEMENTS = 1 << 25
"""Keys and logits are held in float32, of this many elements at a time (128 MiB): long prompts go head by head."""


def window_attention(
    queries: Tensor,
    keys: Tensor,
    *,
    first: int,
    scale: float,
    heads: Literal["max", "mean"],
    soft_cap: float = 0.0,
    sinks: Tensor | None = None,
) -> Tensor:
    """Return the attention paid to each key: mean over the queries, then `heads` over the heads.

    Softmax of QK^T * scale under the causal mask, in float32 (Vaswani et al. 2017, as in transformers' eager
    attention). Nothing here waits for a GPU.

    Args:
        queries: (W, n_heads, head_size), of consecutive positions.
        keys: (P, n_kv_heads, head_size), from position 0 on.
        first: the first query's position.
        scale: what the model multiplies QK^T by.
        heads: how the heads of the layer are reduced.
        soft_cap: the model's cap on attention logits; 0 for none.
        sinks: (n_heads,) learned logits that take attention without being a key; None for none.

    Returns:
        float32 of shape (P,).
    """
    groups = keys.shape[1]
    shared = queries.shape[1] // groups
    per_group = max(1, _MOST_ELEMENTS // (keys.shape[0] * max(keys.shape[2], shared * queries.shape[0])))
    positions = torch.arange(first, first + queries.shape[0], device=queries.device)
    hidden = torch.arange(keys.shape[0], device=queries.device)[None, :] > positions[:, None]
    parts = []
    for begin in range(0, groups, per_group):
        end = min(begin + per_group, groups)
        part = queries[:, begin * shared : end * shared]
        sink = None if sinks is None else sinks[begin * shared : end * shared]
        parts.append(_probabilities(part, keys[:, begin:end], hidden, scale, soft_cap, sink).mean(dim=1))
    by_head = torch.cat(parts)
    return by_head.amax(dim=0) if heads == "max" else by_head.mean(dim=0)


def _probabilities(
    queries: Tensor, keys: Tensor, hidden: Tensor, scale: float, soft_cap: float, sinks: Tensor | None
) -> Tensor:
    """Return (n_heads, W, P), float32."""
    window, n_heads, size = queries.shape
    length, groups, _ = keys.shape
    # heads that share a KV head lie side by side
    grouped = queries.float().view(window, groups, n_heads // groups, size).permute(1, 2, 0, 3)
    logits = torch.matmul(grouped.reshape(groups, -1, size), keys.float().permute(1, 2, 0)) * scale
    logits = logits.view(n_heads, window, length)
    if soft_cap:
        logits = soft_cap * torch.tanh(logits / soft_cap)
    logits = logits.masked_fill(hidden, float("-inf"))
    if sinks is None:
        return logits.softmax(dim=-1)
    column = sinks.float().view(-1, 1, 1).expand(-1, window, 1)
    return torch.cat([logits, column], dim=-1).softmax(dim=-1)[..., :-1]
