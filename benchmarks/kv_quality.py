"""What keys and values in 8 bits cost: how far a model's predictions move from those over a cache of floats.

    .venv/bin/python benchmarks/kv_quality.py MODEL TEXT [--windows 8] [--length 1024]

The same weights and the same kernels on both sides. Nats; the error bars are of the mean over tokens.
"""

import argparse
import sys
from pathlib import Path

import torch
from measuring import finish, show

from octavo.evaluation.scoring import compare
from octavo.model.load import load_model
from octavo.model.tokenizer import load_tokenizer

LARGEST_DIVERGENCE = 0.002
CPU = torch.device("cpu")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--length", type=int, default=1024)
    given = parser.parse_args()
    tokenizer = load_tokenizer(given.model)
    tokens = tokenizer.encode(given.text.read_text()[: 8 * given.windows * given.length], control_tokens=False)
    windows = torch.tensor(tokens[: given.windows * given.length]).view(given.windows, given.length)
    floats = load_model(given.model, CPU, torch.float32)
    codes = load_model(given.model, CPU, torch.float32, coded_cache=True)
    (found,) = compare([codes], floats, windows, lambda losses: show(f"{len(losses)} of {given.windows} windows"))
    divergence, agreement = found.divergence.double(), found.agreement.double()
    mean, error = divergence.mean().item(), divergence.std().item() / len(divergence) ** 0.5
    losses, references = (torch.tensor(each) for each in (found.losses, found.reference_losses))
    ratio = (losses - references).mean().exp().item()
    show(
        f"KL divergence {mean:.6f} ± {error:.6f}, the same likeliest token at {100 * agreement.mean():.2f} %, "
        f"perplexity times {ratio:.5f}"
    )
    misses = [] if mean < LARGEST_DIVERGENCE else [f"the divergence is {mean:.5f}, not {LARGEST_DIVERGENCE}"]
    results = {
        "model": given.model.name,
        "text": given.text.name,
        "windows": given.windows,
        "length": given.length,
        "divergence": {"mean": mean, "standard_error": error, "largest": divergence.max().item()},
        "agreement": agreement.mean().item(),
        "perplexity": references.mean().exp().item(),
        "perplexity_ratio": ratio,
    }
    return finish("kv-quality", results, misses)


if __name__ == "__main__":
    sys.exit(main())
