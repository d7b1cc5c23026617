"""One sequence, token after token: prompt in, ids out, and ids to text that may be shown at once."""

from collections.abc import Iterable, Iterator, Sequence

import torch

from octavo.errors import UsageError
from octavo.model.kv_cache import make_cache, one_sequence
from octavo.model.llama import LlamaModel, forward
from octavo.model.tokenizer import TextStream
from octavo.runtime.params import SamplingParams
from octavo.runtime.sampling import next_token

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
    generator = torch.Generator(device=model.device)
    if params.seed is None:
        generator.seed()
    else:
        generator.manual_seed(params.seed)
    capacity = min(context, len(prompt) + max_new_tokens)
    cache = make_cache(model.config, 1, capacity, model.device, model.dtype)
    history, pending = list(prompt), list(prompt)
    ends = frozenset(end_ids)
    while len(history) < capacity:
        with torch.inference_mode():
            for start in range(0, len(pending), PREFILL_CHUNK):
                chunk = torch.tensor(pending[start : start + PREFILL_CHUNK], device=model.device)
                cached = len(history) - len(pending) + start
                last = torch.tensor([len(chunk) - 1], device=model.device)
                logits = forward(model, one_sequence(chunk, cached, capacity), cache, last)
            token = next_token(logits[0], history, params, generator)
        if token in ends:
            return
        yield token
        history.append(token)
        pending = [token]


def text_of(tokens: Iterable[int], text_stream: TextStream) -> Iterator[str]:
    """Pieces of the tokens' text, none of which splits a character."""
    for token in tokens:
        if piece := text_stream.push(token):
            yield piece
    if rest := text_stream.finish():
        yield rest


def until_stop(pieces: Iterable[str], stop: Sequence[str]) -> Iterator[str]:
    """Text up to the first stop string, which is left out; what could be the beginning of one is held back."""
    if "" in stop:
        raise UsageError("an empty stop string would stop before the first token; leave it out")
    held = ""
    for piece in pieces:
        for character in piece:
            held += character
            if found := [held.find(string) for string in stop if string in held]:
                if text := held[: min(found)]:
                    yield text
                return
        settled = len(held) - _longest_beginning(held, stop)
        if settled:
            yield held[:settled]
            held = held[settled:]
    if held:
        yield held


def _longest_beginning(text: str, stop: Sequence[str]) -> int:
    """Length of the longest end of `text` that a stop string could go on from."""
    lengths = (
        length
        for string in stop
        for length in range(min(len(string) - 1, len(text)), 0, -1)
        if string.startswith(text[-length:])
    )
    return max(lengths, default=0)
