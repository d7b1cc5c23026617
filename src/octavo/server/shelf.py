"""The models that a server was given: loaded and unloaded by name, watched, and restarted when an engine dies."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from octavo.errors import OctavoError, TemplateError
from octavo.model.chat import ChatTemplate, template_for
from octavo.model.llama import LlamaModel
from octavo.model.load import Progress
from octavo.model.template_process import TemplateProcess
from octavo.model.tokenizer import Tokenizer
from octavo.runtime.engine import Engine
from octavo.runtime.grammar import GrammarCompiler
from octavo.runtime.requests import EngineLimits
from octavo.server.errors import RETRY, RETRY_SECONDS, ApiError

log = logging.getLogger(__name__)
WATCH_SECONDS = 0.25
# An engine that dies more often than this, within this time, is not restarted any more.
MOST_DEATHS = 3
DEATHS_SECONDS = 600.0

State = Literal["unloaded", "loading", "ready", "stopped", "failed"]
Load = Callable[[Path, Progress], tuple[LlamaModel, Tokenizer]]


@dataclass(frozen=True)
class ServedModel:
    """A model at work, and what turns requests into its tokens."""

    name: str
    engine: Engine
    tokenizer: Tokenizer
    template: ChatTemplate | None
    grammars: GrammarCompiler


@dataclass
class _Place:
    """A model's place on the shelf."""

    folder: Path
    state: State = "unloaded"
    problem: str = ""
    layers_ready: tuple[int, int] = (0, 0)  # and of how many, while it is loaded
    served: ServedModel | None = None
    deaths: list[float] = field(default_factory=list)


class ModelShelf:
    """Models by name. All but `load`'s reading happens in the server's event loop.

    Their engines take turns, a step each, by the lock `turn`, and share one process that renders chat templates.
    """

    def __init__(self, folders: Mapping[str, Path], load: Load, limits: EngineLimits) -> None:
        self.created = int(time.time())
        self.templates = TemplateProcess()
        self.gave_up = asyncio.Event()  # an engine dies again and again; the process had better end
        self._places = {name: _Place(folder) for name, folder in folders.items()}
        self._load = load
        self._limits = limits
        self.turn = threading.Lock()

    @property
    def names(self) -> list[str]:
        return list(self._places)

    @property
    def served(self) -> list[ServedModel]:
        """The models whose engines were started and not unloaded."""
        return [place.served for place in self._places.values() if place.served is not None]

    def states(self) -> dict[str, State]:
        """Of each model; that of one whose engine has died is "stopped" from that moment on."""
        return {name: self._state(place) for name, place in self._places.items()}

    def folder(self, name: str) -> Path:
        """Where a model lies; ApiError for one that there is not."""
        return self._place(name).folder

    def problem(self, name: str) -> str:
        """Why a model is not ready, where it could not be loaded."""
        place = self._place(name)
        return place.problem if place.state == "failed" else ""

    def layers_ready(self, name: str) -> tuple[int, int] | None:
        """How many layers of a model that is being loaded are ready, and of how many."""
        place = self._place(name)
        return place.layers_ready if place.state == "loading" else None

    def get(self, name: str | None) -> ServedModel:
        """A model that is ready, the first for None; ApiError otherwise."""
        place = self._place(self.names[0] if name is None else name)
        state = self._state(place)
        if place.served is not None and state == "ready":
            return place.served
        if state in ("loading", "stopped"):
            raise ApiError(503, f"the model {name!r} is being loaded; try again", "model_loading", headers=RETRY)
        if state == "failed":
            raise ApiError(503, place.problem, "model_failed", headers={"x-should-retry": "false"})
        raise ApiError(404, f"the model {name!r} is not loaded; load it first", "model_not_loaded", "model")

    async def load(self, name: str) -> None:
        """Make a model ready; one that is already, stays. ApiError if it cannot be."""
        place = self._place(name)
        if place.state in ("loading", "ready"):
            return
        place.state, place.deaths, place.layers_ready = "loading", [], (0, 0)
        try:
            place.served = await asyncio.to_thread(self._served, name, place)
        except Exception as error:  # also what torch raises without memory: it must not be "loading" for ever
            place.state = "failed"
            place.problem = f"the model {name!r} cannot be loaded: {str(error) or type(error).__name__}"
            log.error(place.problem, exc_info=not isinstance(error, OctavoError | OSError))
            raise ApiError(503, place.problem, "model_failed", headers={"x-should-retry": "false"}) from error
        place.state = "ready"

    async def unload(self, name: str) -> None:
        """Free a model's memory; replies under way end with an error."""
        place = self._place(name)
        if place.state == "loading":
            raise ApiError(503, f"the model {name!r} is being loaded; try again", "model_loading", headers=RETRY)
        served, place.served, place.state = place.served, None, "unloaded"
        if served is not None:
            await asyncio.to_thread(served.engine.close)

    async def watch(self) -> None:
        """Restart engines that died, on the weights that are there; give up on one that dies again and again."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            for name, place in self._places.items():
                if place.state == "ready" and self._state(place) == "stopped":
                    await self._restart(name, place)

    async def close(self) -> None:
        """Unload all."""
        for name, place in self._places.items():
            if place.served is not None:
                await self.unload(name)
        self.templates.close()

    async def _restart(self, name: str, place: _Place) -> None:
        now = time.monotonic()
        log.error("the engine of %r died", name)
        place.deaths = [*(moment for moment in place.deaths if now - moment < DEATHS_SECONDS), now]
        if len(place.deaths) > MOST_DEATHS:
            place.state, place.problem = "failed", f"the engine of {name!r} dies again and again"
            self.gave_up.set()
            return
        await asyncio.sleep(RETRY_SECONDS / 2)  # so that a watch on /health sees it
        served = place.served
        if served is None:
            return
        try:
            engine = await asyncio.to_thread(Engine, served.engine.model, self._limits, self.turn)
        except (
            OctavoError,
            RuntimeError,
            MemoryError,
        ) as error:  # the next watch tries again
            log.error("the engine of %r cannot be started again: %s", name, error)
            return
        if place.served is served:
            place.served = replace(served, engine=engine)
        else:  # it was unloaded meanwhile
            await asyncio.to_thread(engine.close)

    def _served(self, name: str, place: _Place) -> ServedModel:
        def progress(ready: int, layers: int) -> None:
            place.layers_ready = (ready, layers)

        network, tokenizer = self._load(place.folder, progress)
        try:
            template = template_for(tokenizer)
        except TemplateError:  # it can still continue texts; chats are refused with the reason
            template = None
        engine = Engine(network, self._limits, self.turn)
        return ServedModel(name, engine, tokenizer, template, GrammarCompiler(tokenizer))

    def _place(self, name: str) -> _Place:
        if name not in self._places:
            message = f"the model {name!r} does not exist; this server has {', '.join(self._places)}"
            raise ApiError(404, message, "model_not_found", "model")
        return self._places[name]

    def _state(self, place: _Place) -> State:
        died = place.served is not None and not place.served.engine.status().alive
        return "stopped" if place.state == "ready" and died else place.state
