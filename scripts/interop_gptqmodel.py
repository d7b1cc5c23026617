"""What GPTQModel makes of a folder, on a CPU; run by the Python of an environment that has it.

    .cache/gptqmodel/bin/python scripts/interop_gptqmodel.py FOLDER TOKENS OUT

TOKENS is a safetensors file with a tensor `tokens` [length]. OUT becomes one with `logits` [length, vocabulary] of
the kernel that GPTQModel chooses, and, under their names, some weights as it dequantizes them. Prints a line of
JSON: versions, kernel, dtype.
"""

import json
import os
import sys
from importlib.metadata import version

SHOWN = ("model.layers.0.self_attn.q_proj", "model.layers.29.mlp.down_proj")


def main() -> None:
    os.environ["TORCHDYNAMO_DISABLE"] = "1"  # compiling takes minutes, and changes nothing of what is shown here

    import torch
    from gptqmodel import BACKEND, GPTQModel
    from safetensors.torch import load_file, save_file

    folder, tokens_path, out = sys.argv[1:]
    tokens = load_file(tokens_path)["tokens"]
    model = GPTQModel.load(folder, device="cpu", dtype=torch.float16)
    with torch.inference_mode():
        logits = model.model(tokens[None]).logits[0]
    kernel = type(model.model.get_submodule(SHOWN[0])).__name__
    plain = GPTQModel.load(folder, device="cpu", dtype=torch.float16, backend=BACKEND.GPTQ_TORCH).model
    # It computes with [in, out]; everyone writes weights as [out, in].
    weights = {name: plain.get_submodule(name).dequantize_weight().t().contiguous() for name in SHOWN}
    save_file({"logits": logits.float(), **weights}, out)
    versions = {name: version(name) for name in ("gptqmodel", "transformers", "torch")}
    print(json.dumps({"versions": versions, "kernel": kernel, "dtype": str(logits.dtype)}), flush=True)


if __name__ == "__main__":
    main()
