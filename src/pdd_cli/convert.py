"""One GGUF file, made into what each engine loads: ``python -m pdd_cli.convert device|cloud SOURCE TARGET``.

Conversions run in a process of their own: an unreadable GGUF can abort llama.cpp, hence its process, and torch's
memory is given back before vLLM asks for it.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from pathlib import Path
from typing import Literal

from pdd_core.errors import ModelError

Part = Literal["device", "cloud"]

_LLAMA_FTYPE_MOSTLY_F16 = 1
_GGML_LOG_LEVEL_ERROR = 4


def convert(part: Part, source: Path, target: Path) -> None:
    """Write the device's file or the cloud's folder, made from the GGUF `source`, to `target`.

    Raises:
        ModelError: `source` cannot be converted; the message has the engine's own reason.
    """
    command = [sys.executable, "-m", "pdd_cli.convert", part, str(source), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or [f"the converter ended with code {done.returncode}"]
        raise ModelError(f"{source} cannot be made into a model for the {part}: {reason[0]}")


def to_device_file(source: Path, target: Path) -> None:
    """Write an F16 GGUF: the weights of `source`, dequantised (``llama_model_quantize``).

    F16 holds every value of a 4- or 8-bit block closely enough that greedy answers equal those of float32.

    Raises:
        ModelError: llama.cpp refuses the file.
    """
    from llama_cpp import llama_cpp as lib

    errors: list[str] = []

    def on_log(level: int, text: bytes, _data: object) -> None:
        if level == _GGML_LOG_LEVEL_ERROR:
            errors.append(text.decode(errors="replace").strip())

    callback = lib.llama_log_callback(on_log)  # has to live as long as llama.cpp may log
    lib.llama_log_set(callback, ctypes.c_void_p(0))
    params = lib.llama_model_quantize_default_params()
    params.ftype = _LLAMA_FTYPE_MOSTLY_F16
    params.allow_requantize = True
    code = lib.llama_model_quantize(bytes(source), bytes(target), ctypes.byref(params))
    if code or not target.is_file():
        raise ModelError(": ".join(errors) or f"llama.cpp gave code {code}")


def to_cloud_folder(source: Path, target: Path) -> None:
    """Write a folder that vLLM serves: the weights of `source` as float32, its configuration and its tokenizer.

    Raises:
        ModelError: transformers does not know the file's architecture, or cannot read it.
    """
    try:
        _write_cloud_folder(source, target)
    except (ValueError, RuntimeError, NotImplementedError, KeyError, OSError) as error:
        raise ModelError(f"{type(error).__name__}: {error}") from error


def _write_cloud_folder(source: Path, target: Path) -> None:
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    target.mkdir()
    # save_pretrained refuses a model read from GGUF, and safetensors refuses tensors that share memory
    shared = model.get_input_embeddings().weight
    weights = {
        name: tensor.contiguous()
        for name, tensor in model.state_dict().items()
        if tensor.data_ptr() != shared.data_ptr() or name.endswith("embed_tokens.weight")
    }
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_dict()
    config.pop("quantization_config", None)
    config |= {"architectures": [type(model).__name__], "dtype": "float32"}
    (target / "config.json").write_text(json.dumps(config, indent=2, default=str))
    model.generation_config.save_pretrained(target)
    # transformers 5.17 takes the token of the beginning for that of the end; the configuration has what GGUF says
    eos = model.config.eos_token_id
    if isinstance(eos, int):
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(eos)
    tokenizer.save_pretrained(target)


def main() -> None:
    """Convert as the command line says; the reason of a failure is the last line on stderr."""
    part, source, target = sys.argv[1:]
    converter = {"device": to_device_file, "cloud": to_cloud_folder}[part]
    try:
        converter(Path(source), Path(target))
    except ModelError as error:
        sys.exit(" ".join(str(error).split()))


if __name__ == "__main__":
    main()
