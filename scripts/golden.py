"""Writes tests/golden/stories260K.json: what transformers makes of "Once upon a time", greedily, 200 tokens long.

.venv/bin/python scripts/golden.py FOLDER_OF_STORIES260K
"""

import json
import sys
from pathlib import Path

import torch
import transformers


def main(folder: str) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt = tokenizer("Once upon a time", return_tensors="pt").input_ids
    written = model.generate(
        prompt, do_sample=False, min_new_tokens=200, max_new_tokens=200, eos_token_id=None, pad_token_id=0
    )
    continuation = written[0, prompt.shape[1] :].tolist()
    golden = {
        "made_with": f"transformers {transformers.__version__}",
        "prompt": prompt[0].tolist(),
        "continuation": continuation,
        "text": tokenizer.decode(continuation),
    }
    path = Path(__file__).parent.parent / "tests" / "golden" / "stories260K.json"
    path.write_text(json.dumps(golden, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
