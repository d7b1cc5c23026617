"""Tokens per second of `octavo serve`: one stream, and many at a time; servers of others take turns with it.

    .venv/bin/python benchmarks/serving.py MODEL TEXT [--requests 16] [--rounds 5] [--peer NAME=COMMAND …]

Each request is a passage of TEXT of about 128 tokens, different from all others, and asks for 128 tokens, greedy.
The rate counts tokens of replies over the time from the first request to the last token. MODEL is served twice,
the second time with `--kv-bits 8`. COMMAND starts a server of OpenAI's API in its fastest configuration, on the
port that stands for `{port}` in it. What holds a figure against Octavo: many at a time make 4 times the tokens of
one stream, and 1.3 times those of any peer.
"""

import argparse
import asyncio
import contextlib
import shlex
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
from measuring import finish, show

PASSAGE = 560  # characters: about 128 tokens
NEW_TOKENS = 128
LEAST_GAIN, LEAST_AHEAD = 4.0, 1.3
OURS = "octavo"
SERVE = [sys.executable, "-c", "from octavo.cli import main; main()", "serve"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=COMMAND")
    given = parser.parse_args()
    text = given.text.read_text()
    passages = iter(text[start : start + PASSAGE] for start in range(0, len(text), PASSAGE))
    commands = {
        OURS: [*SERVE, str(given.model), "--port", "{port}"],
        f"{OURS} --kv-bits 8": [*SERVE, str(given.model), "--port", "{port}", "--kv-bits", "8"],
        **{name: shlex.split(command) for name, _, command in (peer.partition("=") for peer in given.peer)},
    }
    with contextlib.ExitStack() as servers:
        urls = {name: servers.enter_context(server(command)) for name, command in commands.items()}
        for url in urls.values():
            wait_for(url)
            asyncio.run(measure(url, [next(passages)[:60]]))  # the first is slower
        turns: dict[str, list[dict[str, float]]] = {name: [] for name in urls}
        for _ in range(given.rounds):
            for name, url in urls.items():
                one = asyncio.run(measure(url, [next(passages)]))
                many = asyncio.run(measure(url, [next(passages) for _ in range(given.requests)]))
                turns[name].append({"one": one, "many": many})
                show(f"{name}: {one:.0f} tokens/s alone, {many:.0f} by {given.requests} at a time")
    results = {name: summary(of_server) for name, of_server in turns.items()}
    about = {"model": given.model.name, "requests": given.requests, "new_tokens": NEW_TOKENS, "peers": given.peer}
    return finish("serving", {**about, "servers": results}, misses_of(results))


def summary(turns: Sequence[dict[str, float]]) -> dict[str, Any]:
    """All rates, their medians, and the median of what each turn gained."""
    return {
        "one": statistics.median(turn["one"] for turn in turns),
        "many": statistics.median(turn["many"] for turn in turns),
        "gain": statistics.median(turn["many"] / turn["one"] for turn in turns),
        "turns": list(turns),
    }


def misses_of(results: dict[str, dict[str, Any]]) -> list[str]:
    """Which figures are short of their bars."""
    misses = []
    for name in (name for name in results if name.startswith(OURS)):
        gain = results[name]["gain"]
        show(f"{name}: {gain:.2f} times one stream")
        if gain < LEAST_GAIN:
            misses.append(f"{name} gains {gain:.2f} by many requests at a time, not {LEAST_GAIN}")
        for peer in (peer for peer in results if not peer.startswith(OURS)):
            ahead = results[name]["many"] / results[peer]["many"]
            show(f"{name}: {ahead:.2f} times {peer}")
            if ahead < LEAST_AHEAD:
                misses.append(f"{name} is {ahead:.2f} times {peer}, not {LEAST_AHEAD}")
    return misses


@contextlib.contextmanager
def server(command: Sequence[str]) -> Iterator[str]:
    """A server that ends with the measurement; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    placed = [part.replace("{port}", port) for part in command]
    started = subprocess.Popen(placed, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        started.kill()
        started.wait()


def wait_for(url: str) -> None:
    """Until the server has a model that answers."""
    for _ in range(300):
        with contextlib.suppress(httpx2.HTTPError):
            asyncio.run(measure(url, ["One"]))
            return
        time.sleep(0.5)
    raise SystemExit(f"{url} does not come up")


async def measure(url: str, prompts: Sequence[str]) -> float:
    """Tokens of replies per second, all prompts at a time."""
    async with httpx2.AsyncClient(base_url=url, timeout=600) as client:
        model = (await client.get("/v1/models")).raise_for_status().json()["data"][0]["id"]
        body = {"model": model, "max_tokens": NEW_TOKENS, "temperature": 0}
        started = time.perf_counter()
        asked = (client.post("/v1/completions", json={**body, "prompt": prompt}) for prompt in prompts)
        answers = await asyncio.gather(*asked)
        seconds = time.perf_counter() - started
    return sum(answer.raise_for_status().json()["usage"]["completion_tokens"] for answer in answers) / seconds


if __name__ == "__main__":
    sys.exit(main())
