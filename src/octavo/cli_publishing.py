"""The verbs `card` and `push` of the command line."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def card(
    model: Annotated[Path, typer.Argument(help="Quantized model folder.", show_default=False)],
    base_model: Annotated[
        str, typer.Option(help="The hub's name of the model that was quantized.", show_default=False)
    ],
    record: Annotated[
        list[Path], typer.Option(help="File of octavo compare --json; may be given again.", show_default=False)
    ],
    base_folder: Annotated[
        Path | None, typer.Option(help="Its folder, whose card says the license.", show_default=False)
    ] = None,
) -> None:
    """Write MODEL's card, README.md with its plots, from records made for just these weights."""
    from octavo.model.load import open_folder
    from octavo.report.card import CardSpec, write_card
    from octavo.report.preflight import preflight_folder, preflight_values

    spec = CardSpec(model, base_model, tuple(record), base_folder)
    print(write_card(spec, preflight_values(preflight_folder(open_folder(model)))))


def push(
    model: Annotated[Path, typer.Argument(help="Model folder with its card.", show_default=False)],
    repository: Annotated[
        str, typer.Argument(help="Where to: organization/name.", metavar="REPO", show_default=False)
    ],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
) -> None:
    """Upload MODEL with its card to the Hugging Face hub.

    The folder is checked first. Run again after a break, it sends only what the hub lacks. HF_TOKEN, or
    `hf auth login`, says who you are.
    """
    from octavo.model.hub import publish
    from octavo.report.card import files_to_publish

    files = files_to_publish(model)
    Console(stderr=True).print(f"{len(files)} files of {model}", highlight=False, markup=False, soft_wrap=True)
    print(publish(model, files, repository, private))
