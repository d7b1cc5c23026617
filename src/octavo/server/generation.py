"""`/v1/completions` and `/v1/chat/completions`: a checked body to requests, and their replies to an answer."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import Request as HttpRequest
from fastapi.responses import Response

from octavo.errors import TemplateError
from octavo.model.chat import ChatTemplate, Ending, encode_chat
from octavo.runtime.grammar import ANY_OBJECT, TokenGrammar
from octavo.runtime.reply_text import ReplyText
from octavo.runtime.requests import Request
from octavo.server.errors import ApiError
from octavo.server.metrics import Metrics
from octavo.server.replies import Replies, Update
from octavo.server.schemas import (
    DEFAULT_COMPLETION_TOKENS,
    ChatRequest,
    CompletionRequest,
    Conversation,
    Generation,
    JsonObject,
    JsonSchema,
    Pattern,
    PlainText,
)
from octavo.server.settings import CallLimits
from octavo.server.shapes import ChatShape, CompletionShape, Echo, Usage, echo_of
from octavo.server.shelf import ModelShelf, ServedModel
from octavo.server.streams import EventStream, answer_while_connected


@dataclass(frozen=True)
class Kitchen:
    """What is needed to answer a call, whatever it asks for."""

    shelf: ModelShelf
    limits: CallLimits
    metrics: Metrics


async def complete(body: CompletionRequest, http: HttpRequest, kitchen: Kitchen) -> Response:
    """Answer `/v1/completions`."""
    served = kitchen.shelf.get(body.model)
    tokenizer = served.tokenizer
    prompts = await asyncio.to_thread(_prompts, body, served)
    most = DEFAULT_COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
    scored = body.echo is True and body.logprobs is not None
    requests = [
        Request(
            tuple(prompt),
            sampling=body.sampling,
            most_tokens=most,
            end_ids=frozenset(tokenizer.eos_ids),
            top_logprobs=body.logprobs,
            scores_prompt=scored,
            client=http.state.client,
        )
        for prompt in prompts
        for _ in range(body.n or 1)
    ]
    echoes = [
        echo_of(prompt, tokenizer) if body.echo else Echo() for prompt in prompts for _ in range(body.n or 1)
    ]
    texts = [ReplyText(tokenizer, body.stops, continued=True) for _ in requests]
    shape = CompletionShape(tokenizer, body.logprobs is not None, echoes)
    call = Call("cmpl", body, shape, sum(map(len, prompts)), kitchen)
    return await call.answer(served, _drawn_apart(requests, body), texts, http)


async def chat(body: ChatRequest, http: HttpRequest, kitchen: Kitchen) -> Response:
    """Answer `/v1/chat/completions`."""
    served = kitchen.shelf.get(body.model)
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs to be true", "invalid_value", "top_logprobs")
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        message = "max_tokens is the old name of max_completion_tokens; give one of them"
        raise ApiError(400, message, "invalid_value", "max_tokens")
    prompt = await asyncio.to_thread(encode_conversation, body, served, kitchen.shelf)
    grammar = await asyncio.to_thread(_grammar, body, served)
    wanted = body.max_completion_tokens or body.max_tokens
    count = body.n or 1
    requests = [
        Request(
            tuple(prompt),
            sampling=body.sampling,
            most_tokens=served.engine.context if wanted is None else wanted,
            end_ids=frozenset(served.tokenizer.eos_ids),
            top_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
            grammar=None if grammar is None else grammar.copy(),
            client=http.state.client,
        )
        for _ in range(count)
    ]
    continued = body.continue_final_message is True
    texts = [ReplyText(served.tokenizer, body.stops, continued=continued) for _ in requests]
    shape = ChatShape(served.tokenizer, body.logprobs is True)
    call = Call("chatcmpl", body, shape, len(prompt), kitchen)
    return await call.answer(served, _drawn_apart(requests, body), texts, http)


def encode_conversation(body: Conversation, served: ServedModel, shelf: ModelShelf) -> list[int]:
    """The prompt of a chat, by the model's template."""
    messages = [message.message for message in body.messages]
    return encode_chat(
        messages, chat_template(served), served.tokenizer, ending=ending_of(body), run=shelf.templates
    )


def chat_template(served: ServedModel) -> ChatTemplate:
    """TemplateError for a model that has none."""
    if served.template is None:
        raise TemplateError(f"the model {served.name!r} has no chat template; use /v1/completions")
    return served.template


def ending_of(body: Conversation) -> Ending:
    """How the prompt of a conversation ends."""
    if body.continue_final_message:
        if body.add_generation_prompt:
            message = "a message that is continued has no room for a new one; leave add_generation_prompt out"
            raise ApiError(400, message, "invalid_value", "add_generation_prompt")
        return "continue"
    return "closed" if body.add_generation_prompt is False else "reply"


@dataclass(frozen=True)
class Call:
    """One call on its way to its answer."""

    prefix: str
    body: Generation
    shape: ChatShape | CompletionShape
    prompt_tokens: int
    kitchen: Kitchen

    async def answer(
        self, served: ServedModel, requests: Sequence[Request], texts: Sequence[ReplyText], http: HttpRequest
    ) -> Response:
        """Admit the requests; the answer, whole or as a stream."""
        if self.body.stream_options is not None and not self.body.stream:
            raise ApiError(400, "stream_options needs stream to be true", "invalid_value", "stream_options")
        limits = self.kitchen.limits
        replies = Replies(served.engine, requests, texts, limits.reply_seconds)
        name = self.shape.chunk_name if self.body.stream else self.shape.whole_name
        head = {
            "id": f"{self.prefix}-{secrets.token_hex(12)}",
            "object": name,
            "created": int(time.time()),
            "model": served.name,
        }
        if self.body.stream:
            return EventStream(self._chunks(head, replies), limits)
        return await answer_while_connected(self._whole(head, replies), http)

    async def _whole(self, head: dict[str, Any], replies: Replies) -> dict[str, Any]:
        updates: list[list[Update]] = [[] for _ in replies.texts]
        async for update in self._timed(replies):
            updates[update.index].append(update)
        choices = [self.shape.whole(index, own) for index, own in enumerate(updates)]
        return {**head, "choices": choices, "usage": self._usage(replies).body}

    async def _chunks(self, head: dict[str, Any], replies: Replies) -> AsyncIterator[dict[str, Any]]:
        usage: dict[str, Any] = {"usage": None} if self.body.streams_usage else {}
        try:
            for index in range(len(replies.texts)):
                if (opening := self.shape.opening(index)) is not None:
                    yield {**head, "choices": [opening], **usage}
            async for update in self._timed(replies):
                for choice in self.shape.chunks(update):
                    yield {**head, "choices": [choice], **usage}
            if self.body.streams_usage:
                yield {**head, "choices": [], "usage": self._usage(replies).body}
        finally:
            replies.close()

    async def _timed(self, replies: Replies) -> AsyncIterator[Update]:
        """Updates, and what /metrics says of their times."""
        watch = self.kitchen.metrics.watch(self.body.model)
        async for update in replies.updates():
            if update.piece.tokens:
                watch.token(update.index)
            yield update
        watch.finished(self._usage(replies))

    def _usage(self, replies: Replies) -> Usage:
        return Usage(self.prompt_tokens, replies.tokens_written)


def _prompts(body: CompletionRequest, served: ServedModel) -> list[list[int]]:
    """The prompts of a body as token ids: a text gets what the tokenizer puts before it, ids stay as they are."""
    given: list[Any] = body.prompt if isinstance(body.prompt, list) else [body.prompt]
    if isinstance(given[0], int):
        given = [given]
    encoded = [
        served.tokenizer.encode(prompt, control_tokens=True, beginning=True) if isinstance(prompt, str) else prompt
        for prompt in given
    ]
    if not all(encoded):
        raise ApiError(
            400, "a prompt is empty, and this model's tokenizer adds nothing", "invalid_value", "prompt"
        )
    return encoded


def _grammar(body: ChatRequest, served: ServedModel) -> TokenGrammar | None:
    """What the reply must follow."""
    match body.response_format:
        case None | PlainText():
            return None
        case JsonObject():
            return served.grammars.from_schema(ANY_OBJECT)
        case JsonSchema(json_schema=named):
            return served.grammars.from_schema(named.schema_)
        case Pattern(pattern=pattern):
            return served.grammars.from_pattern(pattern)


def _drawn_apart(requests: Sequence[Request], body: Generation) -> list[Request]:
    """Requests of which the k-th reply to a prompt is drawn from the seed plus k, so that `n` replies differ."""
    from dataclasses import replace

    if body.seed is None:
        return list(requests)
    sampling, count = body.sampling, body.n or 1
    seeds = [((sampling.seed or 0) + index % count) & (2**63 - 1) for index in range(len(requests))]
    return [
        replace(request, sampling=replace(sampling, seed=seed))
        for request, seed in zip(requests, seeds, strict=True)
    ]
