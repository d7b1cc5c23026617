"""A server in a thread of the test, on a port of its own, over small models."""

import contextlib
import json
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import torch
import uvicorn

from byte_tokenizer import write_byte_tokenizer
from octavo.model.load import load_model
from octavo.model.tokenizer import load_tokenizer
from octavo.runtime.requests import EngineLimits
from octavo.server.app import make_app
from octavo.server.settings import CallLimits, ServerSettings
from octavo.server.shelf import ModelShelf
from small_models import small_tensors, write_model

LIMITS = EngineLimits(rows=8, queue=64, cache_bytes=32 * 2**20, chunk=64, page_size=16)


def load_on_cpu(folder: Path, progress=None):
    return load_model(
        folder, torch.device("cpu"), torch.float32, block_kernels=(), progress=progress
    ), load_tokenizer(folder)


def bytewise_model(folder: Path, **config: Any) -> Path:
    """A random model over single bytes: its replies are hardly ever UTF-8."""
    generator = torch.Generator().manual_seed(0)
    tensors = small_tensors()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = (torch.randn(259, 48, generator=generator) * 48**-0.5).to(torch.float16)
    write_model(folder, tensors, vocab_size=259, max_position_embeddings=512, **config)
    return write_byte_tokenizer(folder)


def vicuna_stories(stories: Path, folder: Path) -> Path:
    """The stories model under a name for which chats are written as Vicuna's."""
    return Path(shutil.copytree(stories, folder / "vicuna-stories-v1.1"))


@dataclass
class Running:
    """A server that is up."""

    url: str
    shelf: ModelShelf
    server: uvicorn.Server
    client: httpx2.Client

    def post(self, path: str, body: Any, **options: Any) -> httpx2.Response:
        return self.client.post(path, json=body, **options)

    def events(self, path: str, body: dict[str, Any]) -> list[Any]:
        """The events of a stream, parsed; the last is "[DONE]" where it ended well."""
        response = self.post(path, {**body, "stream": True})
        assert response.status_code == 200, response.text
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        return events_of(response.text)

    @property
    def engine(self):
        return self.shelf.served[0].engine


def events_of(text: str) -> list[Any]:
    assert text.endswith("\n\n")
    lines = [line for line in text[:-2].split("\n\n") if not line.startswith(":")]
    assert all(line.startswith("data: ") for line in lines)
    return [line[6:] if line == "data: [DONE]" else json.loads(line[6:]) for line in lines]


def wait_until(condition, seconds=20):
    """By looks 5 ms apart, not by the clock: it also runs while a busy machine lets this process wait."""
    for _ in range(200 * seconds):
        if condition():
            return
        time.sleep(0.005)
    assert condition(), "it takes too long"


@contextlib.contextmanager
def running(
    folders: dict[str, Path],
    *,
    limits: EngineLimits = LIMITS,
    load=load_on_cpu,
    wait: bool = True,
    call_limits: CallLimits = CallLimits(),
    listen_on: int = 0,
    **settings: Any,
) -> Iterator[Running]:
    chosen = ServerSettings(port=0, limits=call_limits, **settings)
    shelf = ModelShelf(folders, load, limits)
    config = uvicorn.Config(
        make_app(shelf, chosen),
        http="h11",
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        timeout_keep_alive=75,
    )
    listening = socket.create_server(("127.0.0.1", listen_on))
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    keys = [*chosen.admin_keys, *chosen.api_keys]
    headers = {"authorization": f"Bearer {keys[0]}"} if keys else {}
    try:
        wait_until(lambda: server.started)
        with httpx2.Client(base_url=url, timeout=60, headers=headers) as client:
            if wait:
                wait_until(lambda: client.get("/health").status_code == 200)
            yield Running(url, shelf, server, client)
    finally:
        server.should_exit = True
        thread.join(30)
        listening.close()
        assert not thread.is_alive()
