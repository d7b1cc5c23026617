"""The engine on a GPU: many replies at a time against one, and each the same as alone."""

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import octavo
from octavo.model.llama import LlamaModel
from octavo.runtime.engine import Engine
from octavo.runtime.params import SamplingParams
from octavo.runtime.requests import EngineLimits, Event, Failed, Request, Written

PROMPT, NEW_TOKENS = 128, 128
REQUESTS = (1, 16, 64)
ROUNDS = 3
COMPANY = 32
Row = dict[str, Any]


def throughput(model: LlamaModel) -> Iterator[Row]:
    """Tokens per second of whole requests, prompts included and never the same; the first round warms up."""
    engine = Engine(model, EngineLimits(rows=max(REQUESTS), cache_bytes=30 * 10**9))
    numbers = torch.Generator().manual_seed(0)
    for count in REQUESTS:
        taken = []
        for _ in range(ROUNDS + 1):
            prompts = torch.randint(3, model.config.vocabulary_size, (count, PROMPT), generator=numbers)
            started = time.perf_counter()
            replies = answers(engine, [Request(tuple(row), most_tokens=NEW_TOKENS) for row in prompts.tolist()])
            taken.append(time.perf_counter() - started)
            assert all(len(reply) == NEW_TOKENS for reply in replies)
        rates = sorted(count * NEW_TOKENS / seconds for seconds in taken[1:])
        yield {
            "what": f"{PROMPT} in, {NEW_TOKENS} out",
            "requests": count,
            "tokens_per_second": rates[ROUNDS // 2],
            "rounds": rates,
        }
    engine.close()


def company(folder: Path) -> Row:
    """A real model: replies to prompts of many lengths, greedy and drawn, alone and all at once."""
    engine = Engine(octavo.load(folder, "cuda").network)
    numbers = torch.Generator().manual_seed(0)
    requests = []
    for number in range(COMPANY):
        prompt = torch.randint(3, engine.model.config.vocabulary_size, (1 + 5 * number,), generator=numbers)
        drawn = SamplingParams(temperature=1.0, seed=number) if number % 2 else SamplingParams()
        requests.append(Request(tuple(prompt.tolist()), sampling=drawn, most_tokens=64))
    alone = [answers(engine, [request])[0] for request in requests]
    together = answers(engine, requests)
    engine.close()
    same = sum(one == other for one, other in zip(alone, together, strict=True))
    return {"what": f"replies of {folder.name}, alone and together", "requests": COMPANY, "same": same}


def answers(engine: Engine, requests: Sequence[Request]) -> list[list[int]]:
    """The tokens of each reply, once all are whole."""
    replies: list[list[int]] = [[] for _ in requests]
    ended = threading.Semaphore(0)

    def listener(reply: list[int]) -> Any:
        def hear(event: Event) -> None:
            if isinstance(event, Written):
                reply.append(event.token)
                return
            if isinstance(event, Failed):
                print(event.error, flush=True)
            ended.release()

        return hear

    engine.submit(requests, [listener(reply) for reply in replies])
    for _ in requests:
        ended.acquire()
    return replies
