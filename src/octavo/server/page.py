"""The web page: its files, under a policy that lets a browser run and fetch nothing but what this server gives."""

import hashlib
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import Response

from octavo.server.errors import ApiError

FOLDER = Path(__file__).parent / "page"
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}
# Scripts and styles are files of ours, pictures at most drawn by them. Text becomes HTML in one place only, named
# "rendered"; browsers that know trusted types see to it.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types rendered",
    )
)
HEADERS = {
    "content-security-policy": POLICY,
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",  # kept, and asked for by hash each time
}


def add_page(app: FastAPI) -> None:
    """Serve the page at / and its files below /assets/; a path is looked up among them and never opened."""
    files = {path.name: path.read_bytes() for path in FOLDER.iterdir() if path.suffix in MEDIA_TYPES}
    tags = {name: f'"{hashlib.sha256(data).hexdigest()[:32]}"' for name, data in files.items()}

    def answer(name: str, request: Request) -> Response:
        if name not in files:
            raise ApiError(404, "there is nothing at this path", "unknown_path")
        headers = HEADERS | {"etag": tags[name]}
        if request.headers.get("if-none-match") == tags[name]:
            return Response(status_code=304, headers=headers)
        return Response(files[name], headers=headers, media_type=MEDIA_TYPES[Path(name).suffix])

    @app.get("/", include_in_schema=False)
    async def index(request: Request) -> Response:
        """The page."""
        return answer("index.html", request)

    @app.get("/assets/{name}", include_in_schema=False)
    async def asset(name: str, request: Request) -> Response:
        """A script or a style sheet of it."""
        return answer(name, request)
