"""What the server tells Prometheus: what its engines are doing, and how long clients wait."""

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from octavo.server.shapes import Usage
from octavo.server.shelf import ModelShelf

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)

GAUGES = {
    "waiting": "requests that wait for their turn",
    "reading": "requests whose prompt is being read",
    "writing": "requests whose reply is being written",
    "pages": "pages of the cache",
    "pages_held": "pages of the cache in use",
}
COUNTERS = {
    "tokens_read": "tokens of prompts that were computed",
    "tokens_reused": "tokens of prompts that were found in the cache",
    "tokens_written": "tokens of replies",
    "set_back": "replies that had to make room for older ones",
    "cancelled": "requests whose client left, or whose stop string came",
}


class Metrics:
    """A registry of its own, so that several servers share a process."""

    def __init__(self, shelf: ModelShelf) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Engines(shelf))
        self._answers = Counter("octavo_http_responses", "Answers by status", ["status"], registry=self._registry)
        self._first = self._histogram("octavo_time_to_first_token_seconds", "From admission to the first token")
        self._gap = self._histogram("octavo_time_between_tokens_seconds", "From a token of a reply to its next")
        self._tokens = Counter(
            "octavo_usage_tokens", "Tokens of finished calls", ["model", "kind"], registry=self._registry
        )

    def answered(self, status: int) -> None:
        self._answers.labels(str(status)).inc()

    def watch(self, model: str) -> "ReplyWatch":
        """For one call that was admitted now."""
        return ReplyWatch(self._first.labels(model), self._gap.labels(model), self._tokens, model)

    def page(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self._registry)

    def _histogram(self, name: str, meaning: str) -> Histogram:
        return Histogram(name, meaning, ["model"], buckets=SECONDS, registry=self._registry)


class ReplyWatch:
    """The times of one call's tokens."""

    def __init__(self, first: Histogram, gap: Histogram, tokens: Counter, model: str) -> None:
        self._first, self._gap, self._tokens, self._model = first, gap, tokens, model
        self._admitted = time.perf_counter()
        self._newest: dict[int, float] = {}

    def token(self, index: int) -> None:
        """Reply `index` got a token."""
        now = time.perf_counter()
        if index in self._newest:
            self._gap.observe(now - self._newest[index])
        else:
            self._first.observe(now - self._admitted)
        self._newest[index] = now

    def finished(self, usage: Usage) -> None:
        self._tokens.labels(self._model, "prompt").inc(usage.prompt_tokens)
        self._tokens.labels(self._model, "completion").inc(usage.completion_tokens)


class _Engines:
    """What the engines say of themselves when they are asked."""

    def __init__(self, shelf: ModelShelf) -> None:
        self._shelf = shelf

    def collect(self) -> Iterator[Metric]:
        statuses = {served.name: served.engine.status() for served in self._shelf.served}
        families: list[GaugeMetricFamily | CounterMetricFamily] = []
        for name, meaning in GAUGES.items():
            families.append(GaugeMetricFamily(f"octavo_{name}", meaning, labels=["model"]))
        for name, meaning in COUNTERS.items():
            families.append(CounterMetricFamily(f"octavo_{name}", meaning, labels=["model"]))
        for family, name in zip(families, [*GAUGES, *COUNTERS], strict=True):
            for model, status in statuses.items():
                family.add_metric([model], getattr(status, name))
        yield from families
