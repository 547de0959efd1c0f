"""The options of llama.cpp's settings: one for each field of `LlamaParams`, with its docstring as the help."""

from __future__ import annotations

import functools
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import typer

from pdd_core.llama_params import LlamaParams

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic.fields import FieldInfo

_SHORT = {
    "n_ctx": ("--ctx-size", "-c"),
    "parallel": ("-np",),
    "gpu_layers": ("--n-gpu-layers", "-ngl"),
    "device": ("-dev",),
    "main_gpu": ("-mg",),
    "split_mode": ("-sm",),
    "tensor_split": ("-ts",),
    "threads": ("-t",),
    "threads_batch": ("-tb",),
    "batch_size": ("-b",),
    "ubatch_size": ("-ub",),
    "cache_type_k": ("-ctk",),
    "cache_type_v": ("-ctv",),
    "flash_attn": ("-fa",),
}
"""llama-server's other names."""
_WORDS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}
PANEL = "llama.cpp"
"""What the help calls them."""


def with_llama_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command` an option for each field of `LlamaParams`; those given come to it as dict `llama`."""
    own = inspect.signature(command, eval_str=True)
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_annotation(name, field))
        for name, field in LlamaParams.model_fields.items()
    ]
    parameters = [
        *(
            one.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for one in own.parameters.values()
            if one.name != "llama"
        ),
        *options,
    ]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        values = {name: given.pop(name) for name in LlamaParams.model_fields}
        command(**given, llama={name: value for name, value in values.items() if value is not None})

    # typer asks for both
    run.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters} | {"return": None}
    return run


def _annotation(name: str, field: FieldInfo) -> Any:
    flag = f"--{name.replace('_', '-')}"
    text = " ".join((field.description or "").partition(": ")[2].replace("``", "`").split())
    text = text[:1].upper() + text[1:]
    if field.annotation is bool:
        return Annotated[
            bool | None,
            typer.Option(f"{flag}/--no-{flag[2:]}", help=text, rich_help_panel=PANEL, show_default=False),
        ]
    names = (flag, *_SHORT.get(name, ()))
    # as text, since pydantic reads the numbers, and says what is wrong with them
    return Annotated[
        str | None, typer.Option(*names, help=text, metavar=_metavar(field.annotation), rich_help_panel=PANEL)
    ]


def _metavar(kind: Any) -> str:
    """Return the values that an annotation takes."""
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    if kind in _WORDS:
        return _WORDS[kind]
    return "|".join(filter(None, (_metavar(inner) for inner in get_args(kind))))
