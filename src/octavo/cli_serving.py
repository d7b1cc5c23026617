"""The verbs `serve` and `chat` of the command line."""

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from octavo.errors import UsageError
from octavo.runtime.params import SamplingParams
from octavo.runtime.requests import EngineLimits

if TYPE_CHECKING:
    from octavo.model.llama import LlamaModel
    from octavo.model.load import Progress
    from octavo.model.tokenizer import Tokenizer

LIMITS, SAMPLING = EngineLimits(), SamplingParams()
MOST_CACHE = 10_000  # GB

Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
KvBits = Annotated[
    int | None,
    typer.Option(help="8 keeps the past of replies in 8 bits.", show_default="as it is computed"),
]


def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(help="Folders or hub names, or NAME=FOLDER; demo is the demo's.", show_default=False),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than loopback need a key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes any that is free.")] = 8080,
    api_key: Annotated[
        list[str] | None, typer.Option(help="Let in only who has it.", envvar="OCTAVO_API_KEY", show_default=False)
    ] = None,
    admin_key: Annotated[
        list[str] | None,
        typer.Option(help="May load and unload too.", envvar="OCTAVO_ADMIN_KEY", show_default=False),
    ] = None,
    host_name: Annotated[
        list[str] | None, typer.Option(help="A name under which browsers may come.", show_default=False)
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Replies written at a time.")] = LIMITS.rows,
    queue: Annotated[int, typer.Option(min=0, help="Requests that may wait.")] = LIMITS.queue,
    cache: Annotated[float, typer.Option(help="GB of memory for the past of each model's replies.")] = 2.0,
    kv_bits: KvBits = None,
    device: Device = "auto",
) -> None:
    """Serve MODELS to browsers, and to clients of OpenAI's API."""
    from octavo.demo import demo_models
    from octavo.server.run import folders_by_name, serve
    from octavo.server.settings import ServerSettings

    def say(line: str) -> None:
        typer.echo(f"octavo: {line}", err=True)

    if not models:
        raise UsageError("there is no model to serve: give a folder or a name of the hub, or `octavo serve demo`")
    if not 0 < cache <= MOST_CACHE:
        raise UsageError(f"--cache {cache:g} is not in 0 … {MOST_CACHE} GB; 2 is usual")
    settings = ServerSettings(host, port, tuple(api_key or ()), tuple(admin_key or ()), tuple(host_name or ()))
    limits = EngineLimits(rows, queue, int(cache * 10**9))
    serve(
        demo_models(say) if models == ["demo"] else folders_by_name(models),
        loader_for(device, kv_bits),
        settings,
        limits,
        lambda url: say(f"listening on {url}"),
    )


def chat(
    model: Annotated[str, typer.Argument(help="Folder, hub name, or http://… of a server.", show_default=False)],
    system: Annotated[str | None, typer.Option(help="System message.", show_default=False)] = None,
    name: Annotated[str | None, typer.Option(help="Which model of a server.", show_default="its first")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest reply, in tokens.", show_default="what fits")
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.7,
    seed: Annotated[int | None, typer.Option(help="Repeats a draw.", show_default="random")] = SAMPLING.seed,
    api_key: Annotated[
        str | None, typer.Option(help="Of a server.", envvar="OCTAVO_API_KEY", show_default=False)
    ] = None,
    kv_bits: KvBits = None,
    device: Device = "auto",
) -> None:
    """Talk to MODEL. From a pipe, it answers what it reads and prints the answer only."""
    if kv_bits is not None and model.startswith(("http://", "https://")):
        raise UsageError(f"--kv-bits is for a model that runs here; how {model} keeps the past is its own affair")
    from octavo.server.partners import ReplySettings, chat_partner
    from octavo.server.terminal import Terminal

    settings = ReplySettings(SamplingParams(temperature, seed=seed), max_new_tokens)
    with contextlib.closing(chat_partner(model, name, api_key, loader_for(device, kv_bits))) as partner:
        terminal = Terminal(partner, settings)
        terminal.conversation.set_system(system or "")
        if sys.stdin.isatty():
            terminal.run()
        else:
            terminal.answer_once(sys.stdin.read())


def loader_for(
    device: str, kv_bits: int | None = None
) -> "Callable[[Path, Progress], tuple[LlamaModel, Tokenizer]]":
    """What makes a model of a folder; a device that is not here is refused at once.

    UsageError for `kv_bits` that a cache does not come in.
    """
    if kv_bits not in (None, 8):
        raise UsageError(f"keys and values are kept in 8 bits or as they are computed, not in {kv_bits} bits")
    from octavo import api
    from octavo.model.load import load_model
    from octavo.model.tokenizer import load_tokenizer

    place, coded = api.choose_device(device), kv_bits == 8

    def load(folder: Path, progress: "Progress") -> "tuple[LlamaModel, Tokenizer]":
        dtype = api.compute_dtype(place)
        network = load_model(folder, place, dtype, progress=progress, coded_cache=coded)
        return network, load_tokenizer(folder)

    return load
