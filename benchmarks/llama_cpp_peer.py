"""llama.cpp as a peer that takes turns: runs in its own environment and answers one JSON line per request.

    .cache/llama-cpp/bin/python benchmarks/llama_cpp_peer.py SOURCE.gguf FOLDER THREADS

It requantizes SOURCE to Q8_0 and Q4_0 by llama.cpp's own tool, loads both, says so, and then answers a line
`{"model": "Q8_0", "prompt": 512, "new_tokens": 32}` with the rates of prefill and decode, in tokens per second.
"""

import ctypes
import json
import sys
import time
from pathlib import Path

import llama_cpp
import numpy as np

FORMATS = {"Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, "Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0}
CONTEXT = 2048


def main() -> None:
    source, folder, threads = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    llama_cpp.llama_log_set(_be_silent, ctypes.c_void_p())
    llama_cpp.llama_backend_init()
    contexts = {name: load(requantized(source, folder, name, kind), threads) for name, kind in FORMATS.items()}
    system = llama_cpp.llama_print_system_info().decode()
    print(json.dumps({"version": llama_cpp.__version__, "system": system}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answer = rates(contexts[request["model"]], request["prompt"], request["new_tokens"])
        print(json.dumps(answer), flush=True)


@llama_cpp.llama_log_callback
def _be_silent(_level, _text, _data):
    """llama.cpp writes much; what matters comes back as errors."""


def requantized(source: Path, folder: Path, name: str, kind: int) -> Path:
    """The source in another of llama.cpp's formats."""
    path = folder / f"{name}.gguf"
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.allow_requantize = kind, True
    if llama_cpp.llama_model_quantize(bytes(source), bytes(path), ctypes.byref(parameters)):
        raise SystemExit(f"llama.cpp could not write {path}")
    return path


def load(path: Path, threads: int):
    """A context of its own for a model."""
    model = llama_cpp.llama_model_load_from_file(bytes(path), llama_cpp.llama_model_default_params())
    parameters = llama_cpp.llama_context_default_params()
    parameters.n_ctx, parameters.n_batch, parameters.n_ubatch = CONTEXT, 512, 512
    parameters.n_threads = parameters.n_threads_batch = threads
    return llama_cpp.llama_init_from_model(model, parameters)


def rates(context, prompt: int, new_tokens: int) -> dict[str, float]:
    """A prompt, then a greedy continuation, in a cache that is emptied before."""
    vocabulary = llama_cpp.llama_vocab_n_tokens(
        llama_cpp.llama_model_get_vocab(llama_cpp.llama_get_model(context))
    )
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
    tokens = np.random.default_rng(0).integers(3, 1000, prompt)
    started = time.perf_counter()
    decode(context, tokens)
    newest = likeliest(context, vocabulary)
    prefilled = time.perf_counter()
    for _ in range(new_tokens):
        decode(context, [newest])
        newest = likeliest(context, vocabulary)
    ended = time.perf_counter()
    return {"prefill": prompt / (prefilled - started), "decode": new_tokens / (ended - prefilled)}


def decode(context, tokens) -> None:
    ids = (llama_cpp.llama_token * len(tokens))(*map(int, tokens))
    if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(ids, len(tokens))):
        raise SystemExit("llama.cpp could not decode")


def likeliest(context, vocabulary: int) -> int:
    logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, -1), shape=(vocabulary,))
    return int(logits.argmax())


if __name__ == "__main__":
    main()
