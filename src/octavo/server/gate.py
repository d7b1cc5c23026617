"""What every request passes first: host, origin and key are checked, its body is counted, its answer is labelled.

Plain ASGI, outside of all routes, so that nothing can be reached around it.
"""

import asyncio
import hashlib
import hmac
import ipaddress
import re
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fastapi.responses import JSONResponse

from octavo.server.errors import ApiError
from octavo.server.settings import ServerSettings

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_PATHS = frozenset({"/", "/health"})  # no key is needed: what is there is the same for everyone
OPEN_FOLDER = "/assets/"  # the files of the page
ADMIN_PATHS = frozenset({"/models/load", "/models/unload"})
LABELS = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]


class Gate:
    """Lets requests through to `app`, or answers them with a refusal."""

    def __init__(self, app: App, settings: ServerSettings) -> None:
        self.app = app
        self.settings = settings
        self._api_keys = [_digest(key) for key in settings.api_keys]
        self._admin_keys = [_digest(key) for key in settings.admin_keys]
        self._names = {name.lower() for name in ("localhost", settings.host, *settings.host_names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = f"req_{secrets.token_hex(12)}"

        async def labelled(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                names = {name.lower() for name, _ in message["headers"]}
                labels = [*LABELS, (b"x-request-id", request_id.encode())]
                message["headers"] = [*message["headers"], *(label for label in labels if label[0] not in names)]
            await send(message)

        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            self._check_site(headers)
            scope["state"] = {**scope.get("state", {}), "client": self._client(scope, headers)}
            body = CountedBody(receive, headers, self.settings)
        except ApiError as refusal:
            response = JSONResponse(refusal.body, refusal.status_code, refusal.headers)
            await response(scope, receive, labelled)
            return
        await self.app(scope, body.receive, labelled)

    def _check_site(self, headers: dict[str, str]) -> None:
        """Refuse names that are not ours (DNS rebinding) and pages of other sites (drive-by requests)."""
        host = headers.get("host", "")
        name = re.sub(r":\d*$", "", host).removeprefix("[").removesuffix("]").lower()
        if name not in self._names and not _is_address(name):
            message = f"this server is not called {host!r}; a further name is allowed by --host-name"
            raise ApiError(421, message, "unknown_host")
        origin = headers.get("origin")
        if origin is not None and origin.lower() not in (f"http://{host}".lower(), f"https://{host}".lower()):
            raise ApiError(403, f"pages of {origin!r} may not use this server", "foreign_origin")

    def _client(self, scope: Scope, headers: dict[str, str]) -> str:
        """Who asks: the number of a key, or an address. ApiError for those who may not.

        The path is the one that is routed by, not one put together from headers.
        """
        path = scope["path"]
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = _digest(key.strip()) if scheme.lower() == "bearer" else b""
        admin, user = (_place(given, keys) for keys in (self._admin_keys, self._api_keys))
        if path in OPEN_PATHS or path.startswith(OPEN_FOLDER) or not (self._api_keys or self._admin_keys):
            peer = scope.get("client")
            return f"address {peer[0]}" if peer else "address unknown"
        if admin is None and user is None:
            message = "a valid API key is needed: send the header 'Authorization: Bearer KEY'"
            raise ApiError(401, message, "invalid_api_key", headers={"www-authenticate": "Bearer"})
        if path in ADMIN_PATHS and admin is None:
            raise ApiError(403, "loading and unloading models needs a key of --admin-key", "admin_key_needed")
        return f"admin {admin}" if admin is not None else f"key {user}"


class CountedBody:
    """The body of a request as it arrives, refused where it is too large or too slow."""

    def __init__(self, receive: Receive, headers: dict[str, str], settings: ServerSettings) -> None:
        self._receive = receive
        self._limits = settings.limits
        self._bytes = 0
        self._whole = False
        self._deadline = asyncio.get_running_loop().time() + self._limits.body_seconds
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self._limits.body_bytes:
            raise self._too_large()

    async def receive(self) -> MutableMapping[str, Any]:
        if self._whole:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError as error:
            seconds = self._limits.body_seconds
            raise ApiError(408, f"the body did not arrive within {seconds:g} seconds", "slow_body") from error
        self._bytes += len(message.get("body", b""))
        if self._bytes > self._limits.body_bytes:
            raise self._too_large()
        self._whole = not message.get("more_body", False)
        return message

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body has more than {self._limits.body_bytes} bytes", "body_too_large")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _place(given: bytes, keys: list[bytes]) -> int | None:
    """Where a key stands in a list; it takes the same time whether it is there or not."""
    found = [hmac.compare_digest(given, key) for key in keys]
    return found.index(True) if any(found) else None


def _is_address(name: str) -> bool:
    """Whether a host is given by number: no name look-up can be bent to lead there."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
