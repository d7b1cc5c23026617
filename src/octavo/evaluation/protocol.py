"""How a text becomes the windows that a perplexity is taken over: one name per published convention.

`gptq` is what GPTQ's reference code measures with `--eval`, `gptq-new` what it measures with `--new-eval --eval`;
the others are what users meet elsewhere. docs/protocols.md gives each exactly. A file of one's own is `plain` or
`chat` where GPTQ's are asked for.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor

from octavo.corpora import Corpus, Split, load_corpus
from octavo.errors import CorpusError, UsageError
from octavo.evaluation.pages import detokenized, pages_of, raw_text, words_of
from octavo.evaluation.spec import USUAL_LENGTHS, EvaluationSpec
from octavo.model.text_windows import (
    draw_from_documents,
    draw_training_windows,
    sha256_of_tokens,
    token_stream,
)
from octavo.model.tokenizer import Tokenizer

# gptq-new takes another split of ptb; all other conventions are given the same texts, so that only they differ.
SPLITS: dict[str, Split] = {"wikitext2": "test", "ptb": "validation", "c4": "validation"}

# What the reference takes of C4, whose validation split holds far more.
C4_WINDOWS = 256
C4_NEW_DOCUMENTS = 1100

# The reference draws its benchmark window at the length of the models of its time, then cuts it.
BENCHMARK_LENGTH = 2048

STRIDE = 512


@dataclass(frozen=True)
class Span:
    """What is predicted of a window: its tokens `first` to `end` - 1, each from all that stand before it.

    Its mean loss counts `weight` times among the windows. `tokens_per_unit` turns nats per token into nats per
    unit of the text, which is the token but for `lm-eval-word`.
    """

    first: int
    end: int
    weight: float = 1.0
    tokens_per_unit: float = 1.0


@dataclass(frozen=True)
class EvaluationWindows:
    """The windows to score, and what identifies them.

    `protocol` is the convention with its length, such as `gptq@4096`, where that is not the usual one; `plain` or
    `chat` for a file; or `benchmark`. A window shorter than the others is filled up behind the end of its span.
    `tokens_total` counts the stream that the windows are cut from, its dropped tail included; `description` says
    in words what was done.
    """

    protocol: str
    text: str
    source: str
    text_sha256: str
    windows: Int64[Tensor, "windows length"]
    spans: tuple[Span, ...]
    tokens_total: int
    tokens_sha256: str
    description: str

    @property
    def weights(self) -> list[float]:
        """How much each window counts in the perplexity."""
        return [span.weight for span in self.spans]

    def unit_losses(self, losses: Sequence[float]) -> list[float]:
        """Losses in nats per unit of the text, from those of the first windows in nats per token."""
        return [span.tokens_per_unit * loss for span, loss in zip(self.spans, losses, strict=False)]


@dataclass(frozen=True)
class _StreamRule:
    """How a protocol makes one stream of a text; None takes all documents, and all windows."""

    protocol: str
    separator: str = "\n\n"
    documents: int | None = None
    windows: int | None = None


@dataclass(frozen=True)
class _Cut:
    """Windows with their spans, the number of windows there were to choose from, and the tokens of the text."""

    windows: list[list[int]]
    spans: list[Span]
    available: int
    tokens_total: int


def evaluation_windows(spec: EvaluationSpec, tokenizer: Tokenizer, context: int) -> EvaluationWindows:
    """The windows of `spec` for a model of a context of so many tokens.

    CorpusError where the text is missing, malformed, shorter than one window, or none that the convention is
    defined for; UsageError where its windows exceed the context; TemplateError where the text holds conversations
    and the model has no template for them.
    """
    length = spec.window_length(context)
    corpus = evaluation_corpus(spec)
    match spec.convention:
        case "llamacpp":
            return _llamacpp_windows(corpus, spec, length, tokenizer)
        case "strided-512":
            return _strided_windows(corpus, spec, length, tokenizer)
        case "lm-eval-word":
            return _word_windows(corpus, spec, length, tokenizer)
    if corpus.dataset == "c4" and spec.convention == "gptq":
        return _slices_of_c4(corpus, spec, length, tokenizer)
    rule = _rule_for(corpus, spec.convention)
    corpus = replace(corpus, documents=corpus.documents[: rule.documents])
    return _cut_stream(corpus, spec, length, rule, token_stream(corpus, tokenizer, rule.separator))


def evaluation_corpus(spec: EvaluationSpec) -> Corpus:
    """The split of the text that a convention measures; a file has no splits and is taken whole."""
    if spec.convention == "gptq-new" and spec.text == "ptb":
        return load_corpus("ptb", "test", spec.data_dir)
    return load_corpus(spec.text, SPLITS.get(spec.text, "test"), spec.data_dir)


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
    return _described(corpus, "benchmark", _whole(window.tolist(), tokens), how)


def _rule_for(corpus: Corpus, protocol: str) -> _StreamRule:
    if corpus.dataset is None:
        return _StreamRule("chat" if corpus.conversations else "plain")
    if protocol == "gptq-new" and corpus.dataset == "ptb":
        return _StreamRule(protocol, " ")
    if protocol == "gptq-new" and corpus.dataset == "c4":
        return _StreamRule(protocol, " ", C4_NEW_DOCUMENTS, C4_WINDOWS)
    return _StreamRule(protocol)


def _cut_stream(
    corpus: Corpus, spec: EvaluationSpec, length: int, rule: _StreamRule, tokens: list[int]
) -> EvaluationWindows:
    """Windows side by side, without overlap; the tail that fills none is dropped."""
    if rule.windows is not None:
        tokens = tokens[: rule.windows * length]
    cut = _side_by_side(tokens, length, spec, corpus)
    how = f"{_joined(corpus, rule)}, {_chosen(cut, length)}"
    return _described(corpus, _named(rule.protocol, length), cut, how)


def _llamacpp_windows(
    corpus: Corpus, spec: EvaluationSpec, length: int, tokenizer: Tokenizer
) -> EvaluationWindows:
    """The file as it is, cut side by side; a start token in place of each first; the second half is scored."""
    _refuse_conversations(corpus, spec)
    tokens = tokenizer.encode(raw_text(corpus, C4_NEW_DOCUMENTS), control_tokens=False, beginning=True)
    cut = _side_by_side(tokens, length, spec, corpus)
    windows = [[*tokenizer.beginning, *window[len(tokenizer.beginning) :]] for window in cut.windows]
    spans = [Span(length // 2 + 1, length)] * len(windows)
    how = f"the file as it is, {_chosen(cut, length)}, the second half of each scored"
    cut = replace(cut, windows=windows, spans=spans)
    return _described(corpus, _named("llamacpp", length), cut, how)


def _strided_windows(corpus: Corpus, spec: EvaluationSpec, length: int, tokenizer: Tokenizer) -> EvaluationWindows:
    """Windows that start every STRIDE tokens; each scores what the one before has not reached."""
    _refuse_conversations(corpus, spec)
    if length < STRIDE:
        raise UsageError(
            f"{spec.protocol} with windows of {length} tokens would leave gaps; ask for at least {STRIDE}"
        )
    rule = _StreamRule("strided-512", documents=C4_NEW_DOCUMENTS if corpus.dataset == "c4" else None)
    corpus = replace(corpus, documents=corpus.documents[: rule.documents])
    tokens = token_stream(corpus, tokenizer, rule.separator)
    windows, spans, scored = [], [], 0
    for begin in range(0, len(tokens), STRIDE):
        window = tokens[begin : begin + length]
        new = begin + len(window) - scored
        # Transformers' guide weighs a window by its new tokens less one, whether or not its first is predicted.
        if new > 1:
            spans.append(Span(max(1, len(window) - new), len(window), weight=new - 1.0))
            windows.append(window)
        scored = begin + len(window)
        if scored == len(tokens):
            break
    count = min(len(windows), spec.windows or len(windows))
    if count == 0:
        raise _too_short(corpus, len(tokens), length)
    cut = _Cut(windows[:count], spans[:count], len(windows), len(tokens))
    how = f"{_joined(corpus, rule)}, {_chosen(cut, length)}, {STRIDE} tokens apart, what is new in each scored"
    return _described(corpus, _named("strided-512", length), cut, how)


def _word_windows(corpus: Corpus, spec: EvaluationSpec, length: int, tokenizer: Tokenizer) -> EvaluationWindows:
    """Pages of wikitext, detokenized, each predicted whole from a start token; the loss is per word."""
    if corpus.dataset != "wikitext2":
        raise CorpusError(
            f"lm-eval-word is defined for wikitext2 alone; measure {corpus.name} by another protocol"
        )
    start = tokenizer.bos_id if tokenizer.bos_id is not None else next(iter(tokenizer.eos_ids), None)
    if start is None:
        raise UsageError(
            "lm-eval-word predicts a page from a start token, and this tokenizer has none; leave it out"
        )
    windows: list[list[int]] = []
    spans: list[Span] = []
    total = 0
    pages = pages_of(corpus.documents)
    for page in pages:
        tokens = [start, *tokenizer.encode(detokenized(page), control_tokens=True)]
        words, predicted = words_of(page), len(tokens) - 1
        total += predicted
        for begin in range(1, len(tokens), length):
            end = min(begin + length, len(tokens))
            # The input is as long as a window may be, or as the page before it; the last token is only predicted.
            first = max(0, end - 1 - length)
            spans.append(Span(begin - first, end - first, words * (end - begin) / predicted, predicted / words))
            windows.append(tokens[first:end])
    count = min(len(windows), spec.windows or len(windows))
    cut = _Cut(windows[:count], spans[:count], len(windows), total)
    how = f"{_counted(len(pages), 'page')}, detokenized, {_chosen(cut, length)}, the loss per word of the original"
    return _described(corpus, _named("lm-eval-word", length), cut, how)


def _side_by_side(tokens: list[int], length: int, spec: EvaluationSpec, corpus: Corpus) -> _Cut:
    available = len(tokens) // length
    if available == 0:
        raise _too_short(corpus, len(tokens), length)
    count = min(available, spec.windows or available)
    windows = [tokens[start : start + length] for start in range(0, count * length, length)]
    return replace(_whole(windows, len(tokens)), available=available)


def _whole(windows: list[list[int]], tokens_total: int) -> _Cut:
    """Windows of which all but the first token is predicted."""
    spans = [Span(1, len(window)) for window in windows]
    return _Cut(windows, spans, len(windows), tokens_total)


def _too_short(corpus: Corpus, tokens: int, length: int) -> CorpusError:
    return CorpusError(
        f"{corpus.name} has {tokens} tokens, which fill no window of {length}; "
        "give a longer text or ask for shorter windows"
    )


def _refuse_conversations(corpus: Corpus, spec: EvaluationSpec) -> None:
    if corpus.conversations:
        raise CorpusError(f"{spec.protocol} is not defined for conversations; measure {corpus.name} by gptq")


def _named(protocol: str, length: int) -> str:
    """A convention's name, with the length where it is not the usual one; a file of one's own has no usual one."""
    return protocol if USUAL_LENGTHS.get(protocol, length) == length else f"{protocol}@{length}"


def _chosen(cut: _Cut, length: int) -> str:
    windows = f"first {len(cut.windows):,} of {cut.available:,} windows of {length:,}"
    return f"{cut.tokens_total:,} tokens, {windows}"


def _joined(corpus: Corpus, rule: _StreamRule) -> str:
    if corpus.conversations:
        return f"{_counted(len(corpus.conversations), 'conversation')} through the chat template"
    return f"{_counted(len(corpus.documents), 'document')} joined by {json.dumps(rule.separator)}"


def _slices_of_c4(corpus: Corpus, spec: EvaluationSpec, length: int, tokenizer: Tokenizer) -> EvaluationWindows:
    """Random windows within single documents; the seed is 0 whatever the calibration's is."""
    count = min(C4_WINDOWS, spec.windows or C4_WINDOWS)
    windows, documents = draw_from_documents(corpus, tokenizer, samples=count, length=length, seed=0)
    how = (
        f"first {count:,} of {C4_WINDOWS} random windows of {length:,} (seed 0), "
        f"from {len(set(documents)):,} of {len(corpus.documents):,} documents"
    )
    return _described(corpus, _named("gptq", length), _whole(windows.tolist(), windows.numel()), how)


def _described(corpus: Corpus, protocol: str, cut: _Cut, how: str) -> EvaluationWindows:
    name = _name(corpus, len(cut.windows))
    length = max(map(len, cut.windows))
    filled = [[*window, *repeat(0, length - len(window))] for window in cut.windows]
    windows = torch.tensor(filled, dtype=torch.int64)
    return EvaluationWindows(
        protocol=protocol,
        text=name,
        source=corpus.source,
        text_sha256=corpus.sha256,
        windows=windows,
        spans=tuple(cut.spans),
        tokens_total=cut.tokens_total,
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
