"""One sequence, token after token: prompt in, ids out, and ids to text that may be shown at once."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import torch

from octavo.errors import UsageError
from octavo.model.kv_cache import KVCache, make_cache, one_sequence
from octavo.model.llama import LlamaModel, hidden_states
from octavo.model.tokenizer import TextStream
from octavo.runtime.capture import capture_for
from octavo.runtime.decoding import Decoder, Emitted
from octavo.runtime.params import SamplingParams

PREFILL_CHUNK = 512  # rows per forward pass of a prompt; bounds its memory, not its result


def generate_tokens(
    model: LlamaModel,
    prompt: Sequence[int],
    params: SamplingParams,
    max_new_tokens: int,
    end_ids: Iterable[int],
) -> Iterator[int]:
    """Ids of the continuation, the one that ends it left out; it also ends where the context is full.

    UsageError for an empty prompt, or one that leaves no room in the model's context.
    """
    context = model.config.context
    if not prompt:
        raise UsageError("the prompt is empty and this model's tokenizer adds no start token; give some text")
    if len(prompt) >= context:
        raise UsageError(f"the prompt has {len(prompt)} tokens but the model's context is {context}; shorten it")
    limit = min(context - len(prompt), max_new_tokens)
    return _until_end(_endless(model, prompt, params, limit), frozenset(end_ids))


def _endless(model: LlamaModel, prompt: Sequence[int], params: SamplingParams, limit: int) -> Iterator[int]:
    """`limit` ids, whatever they are.

    All but the prompt's last token are read in chunks; the decoder begins with that one. On a GPU a step is under
    way while the host looks at the token before it.
    """
    capacity = len(prompt) + limit
    cache = make_cache(model.config, 1, capacity, model.device, model.dtype, model.coded_cache)
    with torch.inference_mode():
        prefill(model, prompt[:-1], cache)
        decoder = Decoder(model, cache, rows=1, pages=1, capture=capture_for(model.device))
        decoder.admit(prompt[-1], prompt[:-1], [0], params)
    ahead = 1 if model.device.type == "cuda" else 0
    on_their_way: deque[Emitted] = deque()
    started = 0
    for _ in range(limit):
        while started < limit and len(on_their_way) <= ahead:
            with torch.inference_mode():
                on_their_way.append(decoder.step())
            started += 1
        yield on_their_way.popleft().read()[0]


def prefill(model: LlamaModel, tokens: Sequence[int], cache: KVCache) -> None:
    """Bring tokens into an empty cache of one page."""
    for start in range(0, len(tokens), PREFILL_CHUNK):
        chunk = torch.tensor(tokens[start : start + PREFILL_CHUNK], device=model.device)
        hidden_states(model, one_sequence(chunk, start, cache.page_size), cache)


def _until_end(tokens: Iterable[int], ends: frozenset[int]) -> Iterator[int]:
    for token in tokens:
        if token in ends:
            return
        yield token


def text_of(tokens: Iterable[int], text_stream: TextStream) -> Iterator[str]:
    """Pieces of the tokens' text, none of which splits a character."""
    for token in tokens:
        if piece := text_stream.push(token):
            yield piece
    if rest := text_stream.finish():
        yield rest


def until_stop(pieces: Iterable[str], stop: Sequence[str]) -> Iterator[str]:
    """Text up to the first stop string, which is left out; what could be the beginning of one is held back."""
    watch = StopStrings(stop)
    for piece in pieces:
        if settled := watch.push(piece):
            yield settled
        if watch.found:
            return
    if rest := watch.rest():
        yield rest


class StopStrings:
    """Looks for stop strings in a text that comes in pieces; `found` says whether one came."""

    def __init__(self, stop: Sequence[str]) -> None:
        if "" in stop:
            raise UsageError("an empty stop string would stop before the first token; leave it out")
        self.found = False
        self._stop = stop
        self._held = ""

    def push(self, piece: str) -> str:
        """What is certain to stand before any stop string, of this piece and those before it."""
        for character in piece if self._stop else ():
            self._held += character
            if starts := [self._held.find(string) for string in self._stop if string in self._held]:
                self.found = True
                return self._held[: min(starts)]
        if not self._stop:
            return piece
        settled = len(self._held) - _longest_beginning(self._held, self._stop)
        text, self._held = self._held[:settled], self._held[settled:]
        return text

    def rest(self) -> str:
        """What was held back, once no more text comes."""
        return self._held


def _longest_beginning(text: str, stop: Sequence[str]) -> int:
    """Length of the longest end of `text` that a stop string could go on from."""
    lengths = (
        length
        for string in stop
        for length in range(min(len(string) - 1, len(text)), 0, -1)
        if string.startswith(text[-length:])
    )
    return max(lengths, default=0)
