"""Who answers in a terminal chat: a server at a URL, or a model in this process. Needs no extras of the server."""

import http.client
import json
import queue
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from octavo.errors import EngineError, UsageError
from octavo.model.chat import ChatTemplate, Message, encode_chat, template_for
from octavo.model.hub import find_model
from octavo.model.llama import LlamaModel
from octavo.model.load import Progress
from octavo.model.tokenizer import Tokenizer
from octavo.runtime.engine import Engine
from octavo.runtime.params import SamplingParams
from octavo.runtime.reply_text import ReplyText
from octavo.runtime.requests import EngineLimits, Event, Failed, Finished, Request, Written

Load = Callable[[Path, Progress], tuple[LlamaModel, Tokenizer]]
# A silent server sends a comment every 15 s, so one that says nothing for so long is gone.
SILENCE_SECONDS = 120.0
LARGEST_LIST = 2**20  # bytes of the list of a server's models
LONGEST_EVENT = 2**20


@dataclass(frozen=True)
class ReplySettings:
    """How replies are written."""

    sampling: SamplingParams = SamplingParams(temperature=0.7)
    max_tokens: int | None = None


@dataclass
class ReplyStatistics:
    """Tokens and seconds of one reply; those of a server that counts none stay 0."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    first_after: float | None = None
    seconds: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    def text_came(self) -> None:
        self.seconds = time.perf_counter() - self.started
        if self.first_after is None:
            self.first_after = self.seconds

    @property
    def tokens_per_second(self) -> float | None:
        """Of the reply after its first text."""
        writing = self.seconds - (self.first_after or 0.0)
        return (self.completion_tokens - 1) / writing if self.completion_tokens > 1 and writing > 0 else None


@runtime_checkable
class Partner(Protocol):
    """Answers conversations. Closing the iterator before its end stops the reply."""

    @property
    def name(self) -> str:
        """What the model is called."""

    def reply(
        self, messages: Sequence[Message], settings: ReplySettings, statistics: ReplyStatistics
    ) -> Generator[str, None, None]:
        """Pieces of the reply; OctavoError where there is none."""

    def close(self) -> None:
        """Let go of what answers; there are no more replies."""


@dataclass(frozen=True)
class LocalPartner:
    """A model in this process."""

    name: str
    engine: Engine
    tokenizer: Tokenizer
    template: ChatTemplate

    def reply(
        self, messages: Sequence[Message], settings: ReplySettings, statistics: ReplyStatistics
    ) -> Generator[str, None, None]:
        prompt = encode_chat(messages, self.template, self.tokenizer)
        statistics.prompt_tokens = len(prompt)
        most = self.engine.context if settings.max_tokens is None else settings.max_tokens
        request = Request(tuple(prompt), settings.sampling, most, frozenset(self.tokenizer.eos_ids))
        text = ReplyText(self.tokenizer, (), continued=False)
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        numbers = self.engine.submit([request], [events.put])
        try:
            while not isinstance(event := events.get(), Finished):
                if isinstance(event, Failed):
                    raise event.error
                if isinstance(event, Written) and (piece := text.push(event.token, None).text):
                    statistics.text_came()
                    yield piece
                statistics.completion_tokens = text.count
            yield text.finish().text
        finally:
            self.engine.cancel(numbers)

    def close(self) -> None:
        self.engine.close()


@dataclass(frozen=True)
class RemotePartner:
    """A server that speaks OpenAI's API; `url` ends in /v1."""

    url: str
    name: str
    api_key: str | None

    def reply(
        self, messages: Sequence[Message], settings: ReplySettings, statistics: ReplyStatistics
    ) -> Generator[str, None, None]:
        sampling = settings.sampling
        wanted = {
            "model": self.name,
            "messages": [{"role": message.role, "content": message.content} for message in messages],
            "max_tokens": settings.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        # Not OpenAI's own, so they are sent only where they say something.
        extras = {
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "repetition_penalty": sampling.repetition_penalty,
        }
        usual = {"top_k": None, "min_p": 0.0, "repetition_penalty": 1.0}
        wanted |= {name: value for name, value in extras.items() if value != usual[name]}
        body = {name: value for name, value in wanted.items() if value is not None}
        with _answer(f"{self.url}/chat/completions", self.api_key, body) as response:
            for chunk in _events(response):
                if usage := chunk.get("usage"):
                    statistics.prompt_tokens = usage["prompt_tokens"]
                    statistics.completion_tokens = usage["completion_tokens"]
                for choice in chunk["choices"]:
                    if piece := choice["delta"].get("content"):
                        statistics.text_came()
                        yield piece

    def close(self) -> None:
        """Nothing to do: each reply has a connection of its own."""


def chat_partner(model: str, name: str | None, api_key: str | None, load: Load) -> Partner:
    """Who answers for `model`: the server at that URL, or what `load` makes of a folder or a hub's repository."""
    if model.startswith(("http://", "https://")):
        return find_remote(model, name, api_key)
    if name is not None:
        raise UsageError(f"--name chooses among the models of a server; {model} is a model itself")
    folder = find_model(model)
    network, tokenizer = load(folder, lambda ready, layers: None)
    template = template_for(tokenizer)  # before the engine starts, which somebody would have to end
    return LocalPartner(folder.resolve().name, Engine(network, EngineLimits(rows=1)), tokenizer, template)


def find_remote(url: str, model: str | None, api_key: str | None) -> RemotePartner:
    """The server at a URL, with the model asked for, or the first that it has."""
    base = url.rstrip("/").removesuffix("/v1") + "/v1"
    if model is None:
        with _answer(f"{base}/models", api_key, None) as response:
            models = json.loads(response.read(LARGEST_LIST))["data"]
            names = [str(each["id"]) for each in models]
        if not names:
            raise UsageError(f"the server at {url} has no model")
        model = names[0]
    return RemotePartner(base, model, api_key)


@contextmanager
def _answer(url: str, api_key: str | None, body: dict[str, Any] | None) -> Iterator[http.client.HTTPResponse]:
    """What a server answers, open until the end; EngineError or UsageError where it refuses or is not there."""
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {api_key}"} if api_key else {})
    data = None if body is None else json.dumps(body).encode()
    try:
        request = urllib.request.Request(url, data, headers)
        with urllib.request.urlopen(request, timeout=SILENCE_SECONDS) as response:
            yield response
    except urllib.error.HTTPError as error:
        message = _message(error.read(65536)) or f"it answers {error.code}"
        kind = UsageError if 400 <= error.code < 500 else EngineError
        raise kind(f"the server refuses: {message}") from error
    except (OSError, http.client.HTTPException) as error:
        raise EngineError(f"the server at {url} cannot be reached, or broke off: {error}") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:  # of what was sent, too
        raise UsageError(f"{url} is no address of such a server: what it answers cannot be read") from error


def _events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """The events of a stream; EngineError for one that reports an error, or an end without [DONE]."""
    while line := response.readline(LONGEST_EVENT):
        if not line.startswith(b"data:"):
            continue
        data = line.removeprefix(b"data:").strip()
        if data == b"[DONE]":
            return
        if message := _message(data):
            raise EngineError(f"the server broke off: {message}")
        yield json.loads(data)
    raise EngineError("the server broke off in the middle of its reply")


def _message(data: bytes) -> str | None:
    """What an error in OpenAI's shape says; None for anything else."""
    try:
        value = json.loads(data)
    except ValueError:
        return None
    error = value.get("error") if isinstance(value, dict) else None
    return str(error.get("message")) if isinstance(error, dict) else None
