"""GPTQModel on the windows that Octavo is timed with; run by the Python of an environment that has it.

    python gptqmodel_peer.py MODEL TOKENS BITS GROUP_SIZE OUT

TOKENS is a safetensors file with one tensor, `tokens`. Prints the seconds of quantizing and saving, as JSON.
GPTQModel computes in bfloat16 unless it is told otherwise; where a processor has no instructions for it, it is
told float32, which then takes about half the time.
"""

import json
import sys
import time
from pathlib import Path

import torch
from gptqmodel import GPTQModel, QuantizeConfig
from safetensors.torch import load_file

FASTEST = torch.bfloat16 if "avx512_bf16" in Path("/proc/cpuinfo").read_text() else torch.float32


def main() -> None:
    model_path, tokens_path, bits, group_size, out = sys.argv[1:]
    windows = load_file(tokens_path)["tokens"].tolist()
    calibration = [{"input_ids": window, "attention_mask": [1] * len(window)} for window in windows]
    config = QuantizeConfig(bits=int(bits), group_size=int(group_size))
    model = GPTQModel.load(model_path, config, device="cpu", dtype=FASTEST)
    started = time.perf_counter()
    model.quantize(calibration, batch_size=1)
    model.save(out)
    print(json.dumps({"seconds": time.perf_counter() - started}), flush=True)


if __name__ == "__main__":
    main()
