"""The model card of a quantized folder: a README.md for the Hugging Face hub, every number of it from a record."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.checkpoint.tensors import INDEX_FILE, tensor_files
from octavo.errors import CheckpointError, OutputError, UsageError
from octavo.evaluation.comparison import distinct_evaluations
from octavo.model.load import CARRIED_FILES
from octavo.records import (
    QUANTIZATION_RECORD,
    RUN_RECORD,
    LinearRecord,
    file_states,
    read_bounded,
    read_json,
    refuse_changed_files,
    sha256_of_file,
    write_bytes,
)
from octavo.report.card_text import SIGNATURE, CardSource, card_of
from octavo.report.plots import plot_divergences, plot_layer_errors

CARD, PLOTS = "README.md", "plots"
LAYER_ERRORS, DIVERGENCES = f"{PLOTS}/error-per-layer.png", f"{PLOTS}/kl-divergence.png"
LARGEST_CARD = 2**20


@dataclass(frozen=True)
class CardSpec:
    """What a card is written from.

    `base_model` is the name on the hub of the model that was quantized, `base_folder` its folder, whose own card
    says the license; `records` are files of `octavo compare --json`.
    """

    folder: Path
    base_model: str
    records: tuple[Path, ...]
    base_folder: Path | None = None

    def __post_init__(self) -> None:
        if not self.records:
            raise UsageError(
                "a card needs a record; run octavo compare DENSE MODEL --json FILE, then octavo card --record FILE"
            )


def write_card(spec: CardSpec, loads: Sequence[dict[str, Any]]) -> Path:
    """Write README.md and its plots into the folder; `loads` says where the model will load. The card's path.

    CheckpointError where a record is missing, or was made for other weights; OutputError where the folder has a
    README.md that is somebody else's.
    """
    card = spec.folder / CARD
    if card.exists() and SIGNATURE.encode() not in read_bounded(card, LARGEST_CARD, OutputError):
        raise OutputError(f"{card} was not written by octavo card; move it away first")
    source = read_source(spec, loads)
    linears = [LinearRecord(**linear) for linear in source.quantization["linears"]]
    (spec.folder / PLOTS).mkdir(exist_ok=True)
    pictures = []  # those of these records; a former card may have left others
    if any(linear.loss is not None for linear in linears):
        plot_layer_errors(linears, spec.folder / LAYER_ERRORS)
        pictures.append(LAYER_ERRORS)
    if histograms := _histograms(source):
        plot_divergences(histograms, spec.folder / DIVERGENCES)
        pictures.append(DIVERGENCES)
    write_bytes(card, card_of(source, pictures).encode())
    return card


def read_source(spec: CardSpec, loads: Sequence[dict[str, Any]]) -> CardSource:
    """All that a card is made of; nothing that does not belong to the weights of the folder gets through."""
    folder = spec.folder
    if not (folder / QUANTIZATION_RECORD).exists():
        raise CheckpointError(f"{folder} has no {QUANTIZATION_RECORD}; cards are for what Octavo has quantized")
    refuse_changed_files(file_states(folder), folder)
    quantization = read_json(folder / QUANTIZATION_RECORD)
    hashes = {path.name: sha256_of_file(path) for path in [folder / "config.json", *tensor_files(folder)]}
    comparisons = []
    for path in spec.records:
        record = read_json(path)
        comparisons.append((record, _position(record, path, hashes, folder)))
    return CardSource(
        name=folder.resolve().name,
        base_model=spec.base_model,
        license=None if spec.base_folder is None else _license(spec.base_folder, quantization["inputs"]["source"]),
        quantization=quantization,
        run=read_json(folder / RUN_RECORD),
        comparisons=comparisons,
        loads=loads,
    )


def files_to_publish(folder: Path) -> list[str]:
    """The files of a folder that make up a published model, by their path within it.

    CheckpointError where there is no card, or it is of other weights, or files are not those of the record.
    """
    card = folder / CARD
    if not card.exists():
        raise CheckpointError(f"{folder} has no {CARD}; octavo card writes one")
    states = file_states(folder)
    refuse_changed_files(states, folder)
    text = read_bounded(card, LARGEST_CARD, CheckpointError).decode(errors="replace")
    if states and not all(digest in text for digest in read_json(folder / QUANTIZATION_RECORD)["files"].values()):
        raise CheckpointError(f"{card} is of other weights than those beside it; write it anew with octavo card")
    names = ["config.json", "quantize_config.json", INDEX_FILE, *CARRIED_FILES, QUANTIZATION_RECORD, RUN_RECORD]
    names += [path.name for path in tensor_files(folder)]
    names += [CARD, *(f"{PLOTS}/{path.name}" for path in sorted((folder / PLOTS).glob("*.png")))]
    return [name for name in names if (folder / name).is_file()]


def _position(record: dict[str, Any], path: Path, hashes: dict[str, str], folder: Path) -> int:
    """Where the folder's weights stand among the models of a comparison."""
    if not isinstance(record.get("models"), list) or not isinstance(record.get("cells"), list):
        raise CheckpointError(f"{path} is no record of octavo compare; make one with octavo compare --json")
    for position, model in enumerate(record["models"]):
        if model["method"] is None and model["files"] == hashes:
            return position
    raise CheckpointError(f"{path} was made for other weights than those of {folder}; compare this folder again")


def _license(base_folder: Path, source: dict[str, str]) -> str | None:
    """The license that the base model's card declares; CheckpointError where another model was quantized."""
    from huggingface_hub import ModelCard

    config = base_folder / "config.json"
    if not config.exists() or sha256_of_file(config) != source["config.json"]:
        raise CheckpointError(f"{base_folder} is not the model that was quantized: its config.json is another")
    card = base_folder / CARD
    if not card.exists():
        return None
    content = read_bounded(card, LARGEST_CARD, CheckpointError).decode(errors="replace")
    license_name: str | None = getattr(ModelCard(content).data, "license", None)
    return license_name


def _histograms(source: CardSource) -> dict[str, dict[str, Any]]:
    """Of the KL divergence of this model to the reference, by text."""
    return {
        f"{cell['text']} by {cell['protocol']}": cell["values"][position]["kl_histogram"]
        for record, position in source.comparisons
        if position > 0
        for cell in distinct_evaluations(record["cells"])
    }
