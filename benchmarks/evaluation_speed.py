"""How long the whole of wikitext2's test set takes with SmolLM2-135M in 8 bits on this CPU, and where it goes.

    .venv/bin/python benchmarks/evaluation_speed.py [--data-dir FOLDER] [--windows N] [--model FOLDER]

FOLDER holds `wikitext2/test.txt`. The bar is 7 minutes for all 148 windows on two cores; the aim is 4.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from measuring import CACHE, finish, show

import octavo
from octavo.conversion.from_gguf import convert_gguf
from octavo.evaluation.metrics import perplexity, softmax, token_losses
from octavo.evaluation.protocol import evaluation_windows
from octavo.evaluation.scoring import score
from octavo.model.kv_cache import make_cache, one_sequence
from octavo.model.llama import LlamaModel, hidden_states
from octavo.schemes import QuantScheme, SchemePlan

ALL_WINDOWS, MOST_MINUTES, AIM_MINUTES = 148, 7.0, 4.0
ROWS, SLICE = 256, 21  # rows whose logits are made, and turned into losses, at a time


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--data-dir", type=Path, default=CACHE.parent.parent / "shared" / "data" / "corpora")
    arguments.add_argument("--windows", type=int)
    arguments.add_argument("--model", type=Path, help="an 8-bit folder; made by rounding where none is given")
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="octavo-evaluation-") as work:
        loaded = octavo.load(given.model or make_model(Path(work)), device="cpu")
        spec = octavo.EvaluationSpec("wikitext2", windows=given.windows, data_dir=given.data_dir)
        windows = evaluation_windows(spec, loaded.tokenizer, loaded.network.config.context)
        started = time.perf_counter()
        losses = score(loaded.network, windows.windows, running(started), windows.spans)
        seconds = time.perf_counter() - started
        parts = parts_of(loaded.network, windows.windows[0])
    minutes = seconds / len(losses) * ALL_WINDOWS / 60
    share = parts["head"] / sum(parts.values())
    show(f"{len(losses)} windows in {seconds:.1f} s; {ALL_WINDOWS} take {minutes:.2f} minutes (aim {AIM_MINUTES})")
    show(
        ", ".join(f"{name} {value:.2f} s" for name, value in parts.items()) + f": the head is {100 * share:.0f} %"
    )
    misses = [f"{ALL_WINDOWS} windows take {minutes:.2f} minutes"] if minutes > MOST_MINUTES else []
    values: dict[str, Any] = {
        "perplexity": perplexity(losses).value,
        "minutes": minutes,
        "seconds_of_window": parts,
    }
    return finish("evaluation-speed", {"windows": len(losses), "seconds": seconds, **values}, misses)


def make_model(work: Path) -> Path:
    """SmolLM2-135M with linears in 8 bits, the head dense: rounding alone is as fast to run as any solution."""
    scheme = QuantScheme(8, 128, symmetric=True)
    convert_gguf(CACHE / "smollm2.gguf", work / "dense")
    recipe = octavo.Recipe(SchemePlan(scheme), method="rtn", act_order="none", scale_search="none")
    octavo.quantize(work / "dense", work / "8bit", recipe)
    return work / "8bit"


def running(started: float) -> Any:
    def tell(losses: list[float]) -> None:
        if len(losses) % 10 == 0:
            elapsed = time.perf_counter() - started
            show(f"{len(losses)} windows, {elapsed:.0f} s, perplexity {perplexity(losses).value:.4f}")

    return tell


def parts_of(model: LlamaModel, window: torch.Tensor) -> dict[str, float]:
    """Seconds that a window spends in the layers, in the head, and in turning logits into losses."""
    cache = make_cache(model.config, 1, len(window), model.device, model.dtype)
    seconds = {"layers": 0.0, "head": 0.0, "losses": 0.0}
    with torch.inference_mode():
        started = time.perf_counter()
        hidden = hidden_states(model, one_sequence(window, 0, len(window)), cache)
        seconds["layers"] = time.perf_counter() - started
        for first in range(0, len(window) - 1, ROWS):
            started = time.perf_counter()
            logits = model.head(hidden[first : min(first + ROWS, len(window) - 1)])
            between = time.perf_counter()
            targets = window[first + 1 : first + 1 + len(logits)]
            for part, chosen in zip(logits.split(SLICE), targets.split(SLICE), strict=True):
                token_losses(softmax(part), chosen)
            seconds["head"] += between - started
            seconds["losses"] += time.perf_counter() - between
    return seconds


if __name__ == "__main__":
    raise SystemExit(main())
