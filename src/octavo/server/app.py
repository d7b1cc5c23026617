"""The routes of the server, and what surrounds them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException

from octavo.errors import OctavoError
from octavo.model.chat import render
from octavo.server.errors import ApiError, api_error, validation_error
from octavo.server.gate import App, Gate, Receive, Scope, Send
from octavo.server.generation import Kitchen, chat, chat_template, complete, encode_conversation, ending_of
from octavo.server.metrics import Metrics
from octavo.server.page import add_page
from octavo.server.page_calls import add_page_calls
from octavo.server.schemas import (
    UNSUPPORTED,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    ModelRequest,
    TokenizeChatRequest,
    TokenizeRequest,
)
from octavo.server.settings import ServerSettings
from octavo.server.shelf import ModelShelf, ServedModel

ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        }
    },
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": "refused or failed", "content": {"application/json": {"schema": ERROR_SCHEMA}}}
    for status in ("4XX", "5XX")
}


def make_app(shelf: ModelShelf, settings: ServerSettings) -> App:
    """The server as an ASGI application. All models are loaded once it starts; until then /health says 503."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(_load_all(shelf)), asyncio.create_task(shelf.watch())]
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await shelf.close()

    metrics = Metrics(shelf)
    app = FastAPI(title="Octavo", docs_url=None, redoc_url=None, lifespan=lifespan, redirect_slashes=False)
    _answer_errors(app)
    kitchen = Kitchen(shelf, settings.limits, metrics)
    _add_generation(app, kitchen)
    _add_tokens(app, shelf)
    _add_models(app, shelf)
    _add_watching(app, shelf, metrics)
    add_page(app)
    add_page_calls(app, kitchen)
    _describe(app, shelf.names)
    return Gate(_counted(app, metrics), settings)


async def _load_all(shelf: ModelShelf) -> None:
    for name in shelf.names:
        with contextlib.suppress(ApiError):  # /health and /v1/models tell of it
            await shelf.load(name)


def _answer_errors(app: FastAPI) -> None:
    """Give every refusal and failure the one shape."""

    def respond(error: ApiError) -> Response:
        return JSONResponse(error.body, error.status_code, error.headers)

    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError), "it is registered for these"
        return respond(validation_error(error.errors()[0], UNSUPPORTED))

    async def not_routed(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException), "it is registered for these"
        if isinstance(error, ApiError):
            return respond(error)
        codes = {400: "invalid_json", 404: "unknown_path", 405: "method_not_allowed"}
        sentences = {
            400: "the body is no JSON, or nested too deeply",
            404: "there is nothing at this path",
            405: "this path has other methods",
        }
        text = sentences.get(error.status_code, str(error.detail))
        return respond(
            ApiError(error.status_code, text, codes.get(error.status_code, "invalid_request"), None, error.headers)
        )

    async def failed(_: Request, error: Exception) -> Response:
        return respond(api_error(error))

    app.add_exception_handler(RequestValidationError, refused)
    app.add_exception_handler(HTTPException, not_routed)
    for kind in (OctavoError, TimeoutError, Exception):
        app.add_exception_handler(kind, failed)


def _add_generation(app: FastAPI, kitchen: Kitchen) -> None:
    streamed: dict[int | str, dict[str, Any]] = {
        200: {"description": "a reply, or a stream of it", "content": {"text/event-stream": {}}}
    }

    @app.post("/v1/chat/completions", responses=ERRORS | streamed)
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation."""
        return await chat(body, request, kitchen)

    @app.post("/v1/completions", responses=ERRORS | streamed)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Continue a text."""
        return await complete(body, request, kitchen)

    @app.post("/v1/embeddings", include_in_schema=False)
    async def embeddings() -> Response:
        """Not offered: states of a model that writes mislead where texts are compared."""
        raise ApiError(501, "this server makes no embeddings", "not_offered", headers={"x-should-retry": "false"})


def _add_tokens(app: FastAPI, shelf: ModelShelf) -> None:
    def answer(served: ServedModel, tokens: list[int], spelled: bool) -> dict[str, Any]:
        spell = served.tokenizer.spelling
        return {
            "count": len(tokens),
            "max_model_len": served.engine.context,
            "tokens": tokens,
            "token_strs": [spell(token) for token in tokens] if spelled else None,
        }

    @app.post("/tokenize", responses=ERRORS)
    async def tokenize(body: TokenizeRequest | TokenizeChatRequest) -> dict[str, Any]:
        """The token ids of a text, or of a chat."""
        served = shelf.get(body.model)
        if isinstance(body, TokenizeChatRequest):
            tokens = await asyncio.to_thread(encode_conversation, body, served, shelf)
        else:
            tokens = await asyncio.to_thread(
                lambda: served.tokenizer.encode(
                    body.prompt, control_tokens=True, beginning=body.add_special_tokens
                )
            )
        return answer(served, tokens, body.return_token_strs)

    @app.post("/detokenize", responses=ERRORS)
    async def detokenize(body: DetokenizeRequest) -> dict[str, str]:
        """The text of token ids, control tokens spelled out."""
        served = shelf.get(body.model)
        return {"prompt": served.tokenizer.decode(body.tokens, control_tokens=True)}

    @app.get("/tokenizer_info", responses=ERRORS)
    async def tokenizer_info(model: str | None = None) -> dict[str, Any]:
        """The control tokens and the chat template of a model."""
        tokenizer = shelf.get(model).tokenizer
        names = ("bos_token", "eos_token", "unk_token", "pad_token")
        return {name: tokenizer.special_tokens.get(name) for name in names} | {
            "chat_template": tokenizer.chat_template
        }

    @app.post("/apply_template", responses=ERRORS)
    async def apply_template(body: TokenizeChatRequest) -> dict[str, Any]:
        """The exact prompt that a chat becomes, and its token ids."""
        served = shelf.get(body.model)
        messages, template = [message.message for message in body.messages], chat_template(served)
        segments = await asyncio.to_thread(
            render, messages, template, served.tokenizer, ending=ending_of(body), run=shelf.templates
        )
        tokens = served.tokenizer.encode_segments(segments, beginning=template.jinja is None)
        text = "".join(segment.text for segment in segments)
        return {"prompt": text, **answer(served, tokens, spelled=True)}


def _add_models(app: FastAPI, shelf: ModelShelf) -> None:
    def described(name: str) -> dict[str, Any]:
        state = shelf.states()[name]
        model = {"id": name, "object": "model", "created": shelf.created, "owned_by": "octavo", "state": state}
        if state == "ready":
            model["max_model_len"] = shelf.get(name).engine.context
        return model

    @app.get("/v1/models", responses=ERRORS)
    async def models() -> dict[str, Any]:
        """All models that this server was given."""
        return {"object": "list", "data": [described(name) for name in shelf.names]}

    @app.get("/v1/models/{name:path}", responses=ERRORS)
    async def one_model(name: str) -> dict[str, Any]:
        """One of them."""
        if name not in shelf.names:
            raise ApiError(404, f"the model {name!r} does not exist", "model_not_found", "model")
        return described(name)

    @app.post("/models/load", responses=ERRORS)
    async def load(body: ModelRequest) -> dict[str, Any]:
        """Make a model ready."""
        await shelf.load(body.model)
        return described(body.model)

    @app.post("/models/unload", responses=ERRORS)
    async def unload(body: ModelRequest) -> dict[str, Any]:
        """Free a model's memory."""
        await shelf.unload(body.model)
        return described(body.model)


def _add_watching(app: FastAPI, shelf: ModelShelf, metrics: Metrics) -> None:
    @app.get("/health", responses=ERRORS)
    async def health() -> Response:
        """200 where each model is ready or was unloaded, else 503."""
        states = shelf.states()
        well = all(state in ("ready", "unloaded") for state in states.values())
        return JSONResponse({"status": "ok" if well else "unavailable", "models": states}, 200 if well else 503)

    @app.get("/metrics", responses=ERRORS, response_class=PlainTextResponse)
    async def prometheus() -> Response:
        """For Prometheus."""
        return Response(metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _describe(app: FastAPI, names: list[str]) -> None:
    """Complete the OpenAPI document: which models there are, and that FastAPI's own 422 is a 400 here."""
    document = app.openapi()
    for path in document["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    for schema in document["components"]["schemas"].values():
        if "model" in schema.get("properties", {}):
            required = "model" in schema["required"]
            schema["properties"]["model"] = {"enum": names if required else [*names, None]}


def _counted(app: App, metrics: Metrics) -> App:
    """The application, with its answers counted by status."""

    async def counted(scope: Scope, receive: Receive, send: Send) -> None:
        async def noted(message: Any) -> None:
            if message["type"] == "http.response.start":
                metrics.answered(message["status"])
            await send(message)

        await app(scope, receive, noted)

    return counted
