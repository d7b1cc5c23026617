"""How a text becomes the windows that a perplexity is taken over: one name per published convention.

`gptq` is what GPTQ's reference code measures with `--eval`, `gptq-new` what it measures with `--new-eval --eval`;
docs/protocols.md gives both exactly. A file of one's own is `plain` or `chat`, whichever is asked for.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor

from octavo.corpora import Corpus, Split, load_corpus
from octavo.errors import CorpusError, UsageError
from octavo.evaluation.spec import EvaluationSpec, Protocol
from octavo.model.text_windows import (
    draw_from_documents,
    draw_training_windows,
    sha256_of_tokens,
    token_stream,
)
from octavo.model.tokenizer import Tokenizer

SPLITS: dict[Protocol, dict[str, Split]] = {
    "gptq": {"wikitext2": "test", "ptb": "validation", "c4": "validation"},
    "gptq-new": {"wikitext2": "test", "ptb": "test", "c4": "validation"},
}

# What the reference takes of C4, whose validation split holds far more.
C4_WINDOWS = 256
C4_NEW_DOCUMENTS = 1100

# The reference draws its benchmark window at the length of the models of its time, then cuts it.
BENCHMARK_LENGTH = 2048


@dataclass(frozen=True)
class EvaluationWindows:
    """The windows to score, and what identifies them.

    `protocol` is `gptq`, `gptq-new`, `plain`, `chat` or `benchmark`; `tokens_total` counts the stream that the
    windows are cut from, its dropped tail included; `description` says in words what was done.
    """

    protocol: str
    text: str
    source: str
    text_sha256: str
    windows: Int64[Tensor, "windows length"]
    tokens_total: int
    tokens_sha256: str
    description: str


@dataclass(frozen=True)
class _StreamRule:
    """How a protocol makes one stream of a text; None takes all documents, and all windows."""

    protocol: str
    separator: str = "\n\n"
    documents: int | None = None
    windows: int | None = None


def evaluation_windows(spec: EvaluationSpec, tokenizer: Tokenizer) -> EvaluationWindows:
    """The windows of `spec`.

    CorpusError where the text is missing, malformed or shorter than one window; TemplateError where it holds
    conversations and the model has no template for them.
    """
    split = SPLITS[spec.protocol].get(spec.text, "test")  # a file has no splits; load_corpus takes it whole
    corpus = load_corpus(spec.text, split, spec.data_dir)
    if corpus.dataset == "c4" and spec.protocol == "gptq":
        return _slices_of_c4(corpus, spec, tokenizer)
    rule = _rule_for(corpus, spec.protocol)
    corpus = replace(corpus, documents=corpus.documents[: rule.documents])
    tokens = token_stream(corpus, tokenizer, rule.separator)
    return _cut_stream(corpus, spec, rule, tokens)


def benchmark_window(
    text: str,
    tokenizer: Tokenizer,
    tokens: int = BENCHMARK_LENGTH,
    data_dir: Path | None = None,
) -> EvaluationWindows:
    """The one window of `--benchmark N --check`: the first calibration sample of seed 0, cut to `tokens`.

    From a published set it is drawn at length 2048, or at `tokens` if that is more; from a file at `tokens`.
    Errors are those of `evaluation_windows`.
    """
    if tokens < 2:
        raise UsageError(f"a benchmark of {tokens} tokens predicts nothing; ask for at least 2")
    corpus = load_corpus(text, "train", data_dir)
    length = tokens if corpus.dataset is None else max(tokens, BENCHMARK_LENGTH)
    window = draw_training_windows(corpus, tokenizer, samples=1, length=length, seed=0)[:, :tokens]
    how = f"one random window of {tokens:,} tokens, the first calibration sample of seed 0"
    return _described(corpus, "benchmark", window, tokens, how)


def _rule_for(corpus: Corpus, protocol: str) -> _StreamRule:
    if corpus.dataset is None:
        return _StreamRule("chat" if corpus.conversations else "plain")
    if protocol == "gptq-new" and corpus.dataset == "ptb":
        return _StreamRule(protocol, " ")
    if protocol == "gptq-new" and corpus.dataset == "c4":
        return _StreamRule(protocol, " ", C4_NEW_DOCUMENTS, C4_WINDOWS)
    return _StreamRule(protocol)


def _cut_stream(corpus: Corpus, spec: EvaluationSpec, rule: _StreamRule, tokens: list[int]) -> EvaluationWindows:
    """Windows side by side, without overlap; the tail that fills none is dropped."""
    length = spec.length
    if rule.windows is not None:
        tokens = tokens[: rule.windows * length]
    available = len(tokens) // length
    if available == 0:
        raise CorpusError(
            f"{corpus.name} has {len(tokens)} tokens, which fill no window of {length}; "
            "give a longer text or ask for shorter windows"
        )
    count = min(available, spec.windows or available)
    windows = torch.tensor(tokens[: count * length], dtype=torch.int64).view(count, length)
    how = (
        f"{_joined(corpus, rule)}, {len(tokens):,} tokens, first {count:,} of {available:,} windows of {length:,}"
    )
    return _described(corpus, rule.protocol, windows, len(tokens), how)


def _joined(corpus: Corpus, rule: _StreamRule) -> str:
    if corpus.conversations:
        return f"{_counted(len(corpus.conversations), 'conversation')} through the chat template"
    return f"{_counted(len(corpus.documents), 'document')} joined by {json.dumps(rule.separator)}"


def _slices_of_c4(corpus: Corpus, spec: EvaluationSpec, tokenizer: Tokenizer) -> EvaluationWindows:
    """Random windows within single documents; the seed is 0 whatever the calibration's is."""
    count = min(C4_WINDOWS, spec.windows or C4_WINDOWS)
    windows, documents = draw_from_documents(corpus, tokenizer, samples=count, length=spec.length, seed=0)
    how = (
        f"first {count:,} of {C4_WINDOWS} random windows of {spec.length:,} (seed 0), "
        f"from {len(set(documents)):,} of {len(corpus.documents):,} documents"
    )
    return _described(corpus, "gptq", windows, windows.numel(), how)


def _described(
    corpus: Corpus, protocol: str, windows: Int64[Tensor, "windows length"], tokens_total: int, how: str
) -> EvaluationWindows:
    name = _name(corpus, len(windows))
    return EvaluationWindows(
        protocol=protocol,
        text=name,
        source=corpus.source,
        text_sha256=corpus.sha256,
        windows=windows,
        tokens_total=tokens_total,
        tokens_sha256=sha256_of_tokens(windows),
        description=f"{name}: {how}",
    )


def _name(corpus: Corpus, windows: int) -> str:
    """The text's name; where less than a shard of C4 stands for C4, it says how much, and how many windows."""
    if corpus.dataset != "c4" or (corpus.name == "c4" and len(corpus.documents) >= C4_NEW_DOCUMENTS):
        return corpus.name
    name = f"c4({len(corpus.documents)} docs)" if corpus.name == "c4" else corpus.name
    return f"{name}, {_counted(windows, 'window')}"


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
