"""A model by name: a folder of this machine, or a repository of the Hugging Face hub; and publishing one there."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from octavo.checkpoint.tensors import INDEX_FILE, SINGLE_FILE
from octavo.errors import CheckpointError, OctavoError, OutputError, UsageError
from octavo.records import read_json, sha256_of_file

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
HUB_NAME = re.compile(rf"(?P<repository>{REPOSITORY.pattern})(?:@(?P<revision>[\w./-]+))?")
MAIN = "main"
CONFIG, CARD = "config.json", "README.md"
# What is read beside the tensors: configuration, tokenizer, template, card. None of it can hold code that is run.
TEXTS = ["*.json", "*.jinja", "tokenizer.model", "LICENSE*", CARD]
SUBFOLDERS = "*/*"
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json", (".bin", ".pt", ".pth"))
SAFE = (SINGLE_FILE, INDEX_FILE, (".safetensors",))


def find_model(name: str | Path, pickled: bool = False) -> Path:
    """The folder `name`, or the hub's copy of the repository `org/name` or `org/name@revision`.

    Of a repository only what is read is fetched: pickled tensors where `pickled` is true and there are no others.
    Tensors that are new here are held against the hub's sha256. With HF_HUB_OFFLINE, what was fetched before is
    taken. CheckpointError where there is no such model, or it cannot be fetched.
    """
    folder = Path(name).expanduser()
    wanted = HUB_NAME.fullmatch(str(name))
    if folder.exists():
        return folder
    if wanted is None:
        raise CheckpointError(f"{name} is no folder, and no name of a model on the Hugging Face hub")
    from huggingface_hub import constants

    repository, revision = wanted["repository"], wanted["revision"] or MAIN
    if constants.HF_HUB_OFFLINE:
        return _kept(repository, revision)
    with _reaching_the_hub(f"{name} is no folder here and cannot be fetched from the hub", CheckpointError):
        return _fetched(repository, revision, pickled)


def _kept(repository: str, revision: str) -> Path:
    """What an earlier call has fetched."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(repository, CONFIG, revision=revision)
    if not isinstance(config, str):
        raise CheckpointError(
            f"{repository}@{revision} was not fetched before, and HF_HUB_OFFLINE forbids it now; unset it"
        )
    return Path(config).parent


def _fetched(repository: str, revision: str, pickled: bool) -> Path:
    """The snapshot of a revision in the hub's cache, with all that is read of it."""
    from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache

    folder = Path(
        snapshot_download(repository, revision=revision, allow_patterns=TEXTS, ignore_patterns=SUBFOLDERS)
    )
    commit = folder.name  # what the revision is now; tensors are fetched of the same
    files = HfApi().model_info(repository, revision=commit, files_metadata=True).siblings or []
    hashes = {file.rfilename: None if file.lfs is None else file.lfs.sha256 for file in files}
    tensors = tensor_names(folder, list(hashes), pickled)
    kept = [name for name in tensors if try_to_load_from_cache(repository, name, revision=commit) is not None]
    if not tensors:
        _refuse_gguf_only(repository, list(hashes))
        return folder
    snapshot_download(repository, revision=commit, allow_patterns=tensors)
    for name in tensors:
        if name not in kept and hashes[name] is not None:
            _refuse_damaged(folder / name, hashes[name])
    return folder


def tensor_names(folder: Path, names: Sequence[str], pickled: bool = False) -> list[str]:
    """Which of a repository's files hold the tensors that are read; `folder` has its index, where there is one.

    They are those that `TensorFolder` opens. A repository may hold the same weights in several forms: pickled,
    in Mistral's own layout, in Meta's in a subfolder.
    """
    top = sorted(name for name in names if "/" not in name)
    for single, index, suffixes in (SAFE, PICKLED) if pickled else (SAFE,):
        if single in top:
            return [single]
        if index in top:
            shards = read_json(folder / index).get("weight_map")
            named = shards.values() if isinstance(shards, dict) else ()
            return [name for name in top if name in named]
        if found := [name for name in top if name.endswith(suffixes)]:
            return found
    return []


def _refuse_gguf_only(repository: str, names: Sequence[str]) -> None:
    """CheckpointError for a repository whose weights are GGUF files, of which one would have to be chosen."""
    found = sorted(name for name in names if name.endswith(".gguf"))
    if found:
        raise CheckpointError(
            f"{repository} holds GGUF files only; fetch one with `hf download {repository} {found[0]}`, "
            "and octavo convert makes a model folder of it"
        )


def _refuse_damaged(path: Path, expected: str | None) -> None:
    """Drop a file of the cache that is not what the hub says; CheckpointError."""
    found = sha256_of_file(path)
    if found != expected:
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise CheckpointError(f"{path.name} came with the sha256 {found}, not {expected}; fetch it again")


def publish(folder: Path, files: Sequence[str], repository: str, private: bool) -> str:
    """Upload files of a folder into the repository `org/name` of the hub, made where it is absent; its address.

    Files that the hub already has are not sent again. UsageError where the name is none, OutputError where the hub
    cannot be reached or refuses.
    """
    if not REPOSITORY.fullmatch(repository):
        raise UsageError(f"{repository} is no name of a repository; write it like organization/model")
    from huggingface_hub import HfApi

    with _reaching_the_hub(f"{folder} cannot be pushed to {repository}", OutputError):
        api = HfApi()
        address = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=list(files),
            commit_message=f"{folder.resolve().name}, by Octavo",
        )
    return str(address)


@contextmanager
def _reaching_the_hub(failure: str, kind: type[OctavoError]) -> Iterator[None]:
    """What the hub's client raises becomes one sentence that begins with `failure`."""
    from huggingface_hub.errors import HFValidationError, HTTPError  # type: ignore[attr-defined]  # of its library

    try:
        yield
    except (OSError, HTTPError, HFValidationError, RuntimeError) as error:  # RuntimeError: hf_xet's only one
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = next(iter(str(cause).splitlines()), type(cause).__name__).rstrip(".")
        raise kind(
            f"{failure} ({reason}); try again online, and for what is private or gated, set HF_TOKEN"
        ) from error
