"""Runs the server in this process until it is told to stop."""

import asyncio
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from octavo.errors import EngineError, UsageError
from octavo.model.hub import find_model
from octavo.runtime.requests import EngineLimits
from octavo.server.settings import ServerSettings
from octavo.server.shelf import Load, ModelShelf

KEEP_ALIVE_SECONDS = 75  # longer than clients keep idle connections, so that none is closed as it is used again


def serve(
    folders: Mapping[str, Path],
    load: Load,
    settings: ServerSettings,
    limits: EngineLimits,
    listening: Callable[[str], None],
) -> None:
    """Serve models by name. `listening` hears the address once requests are taken.

    EngineError where an engine dies again and again; UsageError where the port is taken.
    """
    asyncio.run(_serve(folders, load, settings, limits, listening))


def folders_by_name(models: Sequence[str]) -> dict[str, Path]:
    """Model folders, or NAME=FOLDER, by the name that clients use: by default the folder's, or the hub's."""
    folders: dict[str, Path] = {}
    for model in models:
        name, given, place = model.partition("=")
        folder = find_model(place if given else model)
        name = name if given else (folder.resolve().name if folder == Path(model).expanduser() else model)
        if not name or name in folders:
            raise UsageError(f"two models would be called {name!r}; name them apart, as in small={folder}")
        folders[name] = folder
    return folders


async def _serve(
    folders: Mapping[str, Path],
    load: Load,
    settings: ServerSettings,
    limits: EngineLimits,
    listening: Callable[[str], None],
) -> None:
    import uvicorn

    from octavo.server.app import make_app

    shelf = ModelShelf(folders, load, limits)
    config = uvicorn.Config(
        make_app(shelf, settings),
        host=settings.host,
        port=settings.port,
        http="h11",
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=5,
    )
    listener = _listen(settings, config.backlog)
    server = uvicorn.Server(config)
    host, port = listener.getsockname()[:2]
    listening(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")

    async def give_up() -> None:
        await shelf.gave_up.wait()
        server.should_exit = True

    watching = asyncio.create_task(give_up())
    await server.serve(sockets=[listener])
    watching.cancel()
    if shelf.gave_up.is_set():
        raise EngineError("an engine died again and again; its last words are above")


def _listen(settings: ServerSettings, backlog: int) -> socket.socket:
    """A socket at the address; who comes before the server is up waits, and is not refused."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=backlog)
    except OSError as error:
        raise UsageError(
            f"port {settings.port} of {settings.host} cannot be listened on ({error.strerror}); "
            "choose another with --port, 0 takes any that is free"
        ) from error
