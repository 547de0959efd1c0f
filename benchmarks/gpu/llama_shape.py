"""A model folder without weights: vLLM makes up random ones (``load_format="dummy"``), as fast as real ones."""

import json
from pathlib import Path

SHAPES = {
    "llama-8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "vocab_size": 128256,
                 "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128},
    "demo": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": 49152,
             "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64},
    "tiny": {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "vocab_size": 32000,
             "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64},
}  # fmt: skip
"""``llama-8b`` is the shape of Llama-3.1-8B, ``demo`` that of SmolLM2-135M, which a CPU can serve; ``tiny`` is for
trying a script out."""


def write_model(shape: str, folder: Path) -> Path:
    """Write ``config.json`` of `shape` into `folder`. There is no tokenizer: prompts are token ids."""
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0, "max_position_embeddings": 16384, "attention_bias": False, "mlp_bias": False,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", "bos_token_id": 0, "eos_token_id": 1,
        **SHAPES[shape],
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    return folder
