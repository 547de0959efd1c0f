"""How many of a prompt's last tokens have their attention captured: the API server says it, request by request.

Neither scheduler nor worker can tell a question from its document: they have no texts. So the number travels with
the request, in ``SamplingParams.extra_args``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

KEY = "_pdd_window"
"""In ``extra_args``, and no field of the opt-in: what a client writes there is written over."""


def with_window(sampling_params: Any, window: int) -> Any:
    """Return a copy of vLLM's sampling parameters that names the window, in tokens."""
    params = sampling_params.clone()
    params.extra_args = {**(params.extra_args or {}), KEY: window}
    return params


def window_of(extra_args: Mapping[str, Any] | None, *, most: int) -> int:
    """Return the window of a request: `most` tokens, or fewer if the API server has said so."""
    window = (extra_args or {}).get(KEY)
    return min(window, most) if type(window) is int and window > 0 else most
