"""A model by name: a folder of this machine, or a repository of the Hugging Face hub, fetched once."""

import re
from pathlib import Path

from octavo.errors import CheckpointError

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# Tensors and texts; nothing that could hold code.
WANTED = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model"]


def find_model(name: str) -> Path:
    """The folder `name`, or the hub's copy of the repository `name`; CheckpointError where there is neither."""
    folder = Path(name).expanduser()
    if folder.exists():
        return folder
    if not REPOSITORY.fullmatch(name):
        raise CheckpointError(f"{name} is no folder, and no name of a model on the Hugging Face hub")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=WANTED))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{name} is no folder here and cannot be fetched from the hub: {reason}") from error
