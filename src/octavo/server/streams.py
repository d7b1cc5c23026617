"""Server-sent events, and the end of work for clients that are gone."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, MutableMapping
from contextlib import suppress
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from octavo.errors import OctavoError
from octavo.server.errors import ApiError, api_error
from octavo.server.gate import Receive, Scope, Send
from octavo.server.settings import CallLimits

Answer = TypeVar("Answer")
CLIENT_IS_GONE = Response(status_code=499)  # nobody will read it
DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"
HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-store",
    "x-accel-buffering": "no",
}


def as_json(value: Any) -> bytes:
    """Compact JSON; NaN and infinities are mistakes of ours."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


class EventStream(Response):
    """Chunks as server-sent events, then [DONE]; an error that ends them is the last event, without [DONE].

    While nothing comes, a comment is sent now and then. A client that leaves, or stops reading, ends the work.
    """

    def __init__(self, chunks: AsyncIterator[dict[str, Any]], limits: CallLimits) -> None:
        super().__init__(headers=HEADERS)
        self.raw_headers = [header for header in self.raw_headers if header[0] != b"content-length"]
        self._chunks = chunks
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.ensure_future(self._send_all(send))
        await _unless_gone(sending, receive)

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async for data in self._with_pings():
                await self._send(send, {"type": "http.response.body", "body": data, "more_body": True})
        except TimeoutError:  # the reader's; there is nobody to tell
            return
        await self._send(send, {"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send, message: MutableMapping[str, Any]) -> None:
        async with asyncio.timeout(self._limits.stalled_seconds):
            await send(message)

    async def _with_pings(self) -> AsyncGenerator[bytes, None]:
        events = self._events()
        coming = asyncio.ensure_future(anext(events))
        try:
            while True:
                done, _ = await asyncio.wait({coming}, timeout=self._limits.ping_seconds)
                if not done:
                    yield PING
                    continue
                try:
                    yield coming.result()
                except StopAsyncIteration:
                    return
                coming = asyncio.ensure_future(anext(events))
        finally:
            coming.cancel()
            with suppress(asyncio.CancelledError, StopAsyncIteration):
                await coming
            await events.aclose()

    async def _events(self) -> AsyncGenerator[bytes, None]:
        try:
            async for chunk in self._chunks:
                yield b"data: " + as_json(chunk) + b"\n\n"
        except (OctavoError, ApiError, TimeoutError) as error:
            yield b"data: " + as_json(api_error(error).body) + b"\n\n"
            return
        yield DONE


async def answer_while_connected(work: Coroutine[Any, Any, dict[str, Any]], request: Request) -> Response:
    """A JSON answer; the work is given up when the client leaves."""
    task = asyncio.ensure_future(work)
    if not await _unless_gone(task, request.receive):
        return CLIENT_IS_GONE
    return JSONResponse(task.result())


async def _unless_gone(work: "asyncio.Future[Any]", receive: Receive) -> bool:
    """Wait for work to be done, and cancel it if the client leaves before; whether it was done."""
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            work.result()
            return True
        return False
    finally:
        for task in (work, gone):
            if not task.done():
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
