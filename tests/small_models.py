"""Small model folders and calibrations that tests make for themselves."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from octavo.quantization.calibration import Calibration

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": 70,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
}


def small_tensors(dtype: torch.dtype = torch.float16) -> dict[str, torch.Tensor]:
    """Random weights for CONFIG; 48 and 70 columns make ragged groups and words."""
    generator = torch.Generator().manual_seed(0)
    hidden, mlp, kv = 48, 70, 24

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return (torch.randn(rows, columns, generator=generator) * columns**-0.5).to(dtype)

    def norm() -> torch.Tensor:
        return (1 + 0.1 * torch.randn(hidden, generator=generator)).to(dtype)

    tensors = {"model.embed_tokens.weight": matrix(61, hidden), "lm_head.weight": matrix(61, hidden)}
    for layer in range(3):
        prefix = f"model.layers.{layer}"
        for name, shape in {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (kv, hidden),
            "self_attn.v_proj": (kv, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (mlp, hidden),
            "mlp.up_proj": (mlp, hidden),
            "mlp.down_proj": (hidden, mlp),
        }.items():
            tensors[f"{prefix}.{name}.weight"] = matrix(*shape)
        tensors[f"{prefix}.input_layernorm.weight"] = norm()
        tensors[f"{prefix}.post_attention_layernorm.weight"] = norm()
    tensors["model.norm.weight"] = norm()
    return tensors


def write_model(folder: Path, tensors: dict[str, torch.Tensor] | None = None, **config: object) -> Path:
    """A dense model folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors or small_tensors(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    (folder / "generation_config.json").write_text('{"eos_token_id": 2}')
    return folder


def small_calibration(samples: int = 3, length: int = 40, seed: int = 0) -> Calibration:
    """Random tokens, as if drawn from a text."""
    tokens = torch.randint(0, 61, (samples, length), generator=torch.Generator().manual_seed(seed))
    return Calibration(tokens, "random", "made by the test", "0" * 64, str(seed))


FAMILY_CONFIG = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}


def write_family_model(folder: Path, family: str, values: dict[str, object]) -> None:
    """A random model of a family (Llama, Mistral, Qwen2, Qwen3), saved by transformers."""
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{**FAMILY_CONFIG, **values})
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:  # norms start as 1 and biases as 0, which would hide a mistake
                parameter.add_(torch.randn_like(parameter) * (0.3 if "bias" in name else 0.1))
            else:
                parameter.mul_(5)
    model.save_pretrained(folder)
