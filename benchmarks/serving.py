"""Tokens per second of `octavo serve`: one stream, and many at a time; another server may take turns with it.

    python benchmarks/serving.py MODEL TEXT [--requests 16] [--rounds 2] [--peer COMMAND]

Each request is a passage of TEXT of about 128 tokens, different from all others, and asks for 128 tokens, greedy.
The rate counts tokens of replies over the time from the first request to the last token. COMMAND starts a server
of OpenAI's API on port 8399 in its fastest configuration.
"""

import argparse
import asyncio
import contextlib
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2

PASSAGE = 560  # characters: about 128 tokens
NEW_TOKENS = 128
PEER_URL = "http://127.0.0.1:8399"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--peer", default=None)
    arguments = parser.parse_args()
    text = arguments.text.read_text()
    passages = iter(text[start : start + PASSAGE] for start in range(0, len(text), PASSAGE))
    with contextlib.ExitStack() as servers:
        urls = {"octavo": servers.enter_context(octavo_server(arguments.model))}
        if arguments.peer is not None:
            servers.enter_context(process(shlex.split(arguments.peer)))
            urls["peer"] = PEER_URL
        for url in urls.values():
            wait_for(url)
            asyncio.run(measure(url, [next(passages)[:60]]))  # the first is slower
        for _ in range(arguments.rounds):
            for name, url in urls.items():
                one = asyncio.run(measure(url, [next(passages)]))
                many = asyncio.run(measure(url, [next(passages) for _ in range(arguments.requests)]))
                print(json.dumps({"server": name, "one": one, "many": many, "ratio": many / one}), flush=True)


@contextlib.contextmanager
def process(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A server that ends with the measurement."""
    started = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        yield started
    finally:
        started.kill()
        started.communicate()


@contextlib.contextmanager
def octavo_server(model: Path) -> Iterator[str]:
    """Its address."""
    command = [sys.executable, "-c", "from octavo.cli import main; main()", "serve", str(model), "--port", "0"]
    with process(command) as started:
        assert started.stderr is not None, "it is a pipe"
        yield started.stderr.readline().split()[-1]


def wait_for(url: str) -> None:
    """Until the server has a model that answers."""
    for _ in range(600):
        with contextlib.suppress(httpx2.HTTPError):
            models = httpx2.get(f"{url}/v1/models").json()["data"]
            if all(model.get("state", "ready") == "ready" for model in models):
                return
        time.sleep(0.2)
    raise SystemExit(f"{url} does not come up")


async def measure(url: str, prompts: list[str]) -> float:
    """Tokens of replies per second, all prompts at a time."""
    async with httpx2.AsyncClient(base_url=url, timeout=600) as client:
        model = (await client.get("/v1/models")).json()["data"][0]["id"]
        body = {"model": model, "max_tokens": NEW_TOKENS, "temperature": 0}
        started = time.perf_counter()
        asked = (client.post("/v1/completions", json={**body, "prompt": prompt}) for prompt in prompts)
        answers = await asyncio.gather(*asked)
        seconds = time.perf_counter() - started
    return sum(answer.raise_for_status().json()["usage"]["completion_tokens"] for answer in answers) / seconds


if __name__ == "__main__":
    main()
