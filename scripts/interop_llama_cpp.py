"""What llama.cpp makes of a GGUF file, on a CPU; run by the Python of the environment that scripts/peers makes.

    .cache/llama-cpp/bin/python scripts/interop_llama_cpp.py FILE TOKENS.json OUT.f32

OUT becomes the logits of all tokens, float32, row by row. Prints a line of JSON: versions.
"""

import json
import sys
from pathlib import Path

import llama_cpp


def main() -> None:
    path, tokens_path, out = map(Path, sys.argv[1:])
    tokens = json.loads(tokens_path.read_text())
    model = llama_cpp.Llama(str(path), n_ctx=len(tokens), logits_all=True, verbose=False)
    model.eval(tokens)
    out.write_bytes(model.scores[: len(tokens)].astype("<f4").tobytes())
    print(json.dumps({"versions": {"llama-cpp-python": llama_cpp.__version__}}), flush=True)


if __name__ == "__main__":
    main()
