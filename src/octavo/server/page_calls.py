"""What the page asks of the server beside OpenAI's API: models and memory, Markdown, cards, tokens one by one."""

import asyncio
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic import Field

from octavo.model.kv_cache import slot_bytes
from octavo.model.llama import FusedBlock
from octavo.server.characters import read_character
from octavo.server.generation import Kitchen
from octavo.server.markdown import rendered
from octavo.server.page_writing import (
    CompareRequest,
    NextTokensRequest,
    Workbench,
    WriteRequest,
    compare,
    next_tokens,
    write,
)
from octavo.server.quantization_view import stored_bytes, view_of
from octavo.server.schemas import Body, Text
from octavo.server.shelf import ModelShelf

MOST_TEXTS = 64
LARGEST_PROC_FILE = 2**16


class MarkdownRequest(Body):
    """`POST /page/markdown`."""

    texts: Annotated[list[Text], Field(max_length=MOST_TEXTS)]


def add_page_calls(app: FastAPI, kitchen: Kitchen) -> None:
    """The page's own routes. They follow the page, not a promise, so the OpenAPI document leaves them out."""
    _add_models(app, kitchen.shelf)
    bench = Workbench(kitchen)

    @app.post("/page/write", include_in_schema=False)
    async def page_write(body: WriteRequest, request: Request) -> Response:
        """Continue a text, each token with its id and the likeliest in its place."""
        return await write(body, request, kitchen)

    @app.post("/page/next_tokens", include_in_schema=False)
    async def page_next_tokens(body: NextTokensRequest) -> dict[str, Any]:
        """What may come next, before and after the samplers."""
        return await next_tokens(body, bench)

    @app.post("/page/compare", include_in_schema=False)
    async def page_compare(body: CompareRequest) -> Response:
        """Two models on one text, token by token."""
        return await compare(body, bench)

    @app.post("/page/markdown", include_in_schema=False)
    async def page_markdown(body: MarkdownRequest) -> dict[str, list[str]]:
        """Texts as HTML that may be shown."""
        return {"html": await asyncio.to_thread(lambda: [rendered(text) for text in body.texts])}

    @app.post("/page/character", include_in_schema=False)
    async def page_character(request: Request) -> dict[str, str]:
        """The character of a card, whose file is the body."""
        return vars(await asyncio.to_thread(read_character, await request.body()))


def _add_models(app: FastAPI, shelf: ModelShelf) -> None:
    @app.get("/page/models", include_in_schema=False)
    async def page_models() -> dict[str, Any]:
        """Every model with its state and size, and the memory of the process and the machine."""
        models = await asyncio.to_thread(lambda: [_model(shelf, name) for name in shelf.names])
        return {"models": models, "memory": await asyncio.to_thread(_memory)}

    @app.get("/page/quantization/{name:path}", include_in_schema=False)
    async def page_quantization(name: str) -> dict[str, Any]:
        """How a model is stored, what that cost layer by layer, where it loads, and its card."""
        return await asyncio.to_thread(view_of, shelf.folder(name))


def _model(shelf: ModelShelf, name: str) -> dict[str, Any]:
    """A model as its menu shows it; what is only known of one that is ready is None for others."""
    state = shelf.states()[name]
    values: dict[str, Any] = {
        "name": name,
        "state": state,
        "problem": shelf.problem(name),
        "layers_ready": shelf.layers_ready(name),
        "bytes": stored_bytes(shelf.folder(name)),
    }
    served = next((each for each in shelf.served if each.name == name), None)
    if state != "ready" or served is None:
        return values | {"context": None, "template": None, "cache": None, "kernel": None}
    engine, status = served.engine, served.engine.status()
    config, page = engine.model.config, engine.limits.page_size
    per_token = slot_bytes(config, engine.model.dtype, engine.model.coded_cache)
    template = None
    if served.template is not None:
        template = "Vicuna v1.1" if served.template.jinja is None else "its own"
    block = engine.model.blocks[0]
    return values | {
        "context": engine.context,
        "template": template,
        "cache": {
            "bytes_per_token": per_token,
            "bytes": per_token * page * status.pages,
            "bytes_held": per_token * page * status.pages_held,
        },
        "kernel": block.kernel if isinstance(block, FusedBlock) else "one linear at a time",
    }


def _memory() -> dict[str, int | None]:
    """Bytes that this process holds and that are still to be had; None where the system does not tell."""
    return {
        "resident": _proc_value(Path("/proc/self/status"), "VmRSS"),
        "available": _proc_value(Path("/proc/meminfo"), "MemAvailable"),
    }


def _proc_value(path: Path, name: str) -> int | None:
    """A number of Linux' own books, which are in KiB."""
    if not path.exists():
        return None
    with path.open(encoding="ascii") as file:
        for line in file.read(LARGEST_PROC_FILE).splitlines():
            key, _, value = line.partition(":")
            if key == name:
                return int(value.split()[0]) * 1024
    return None
