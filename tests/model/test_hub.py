"""Models by name: which files of a repository are fetched, kept, and held against their hashes; and publishing."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import save

from hub_server import Hub, running_hub
from octavo.errors import CheckpointError, OutputError, UsageError
from octavo.model.hub import find_model, publish, tensor_names
from small_models import CONFIG, small_tensors

NAME = "leaves/small"
SMALL = save({"a": torch.arange(5000)})
CONFIGURATION = {"config.json": json.dumps(CONFIG).encode()}
INDEX = "model.safetensors.index.json"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub of this machine, and an empty cache."""
    with running_hub() as server:
        for name, value in {
            "ENDPOINT": server.endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_OFFLINE": False,
        }.items():
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield server


def index_of(*shards: str) -> bytes:
    return json.dumps({"weight_map": {f"tensor{number}": shard for number, shard in enumerate(shards)}}).encode()


@pytest.mark.parametrize(
    ("files", "pickled", "expected"),
    [
        (["model.safetensors", "other.safetensors", "pytorch_model.bin"], True, ["model.safetensors"]),
        (["a.safetensors", "b.safetensors", "sub/c.safetensors"], False, ["a.safetensors", "b.safetensors"]),
        (["consolidated.safetensors", "one.safetensors", INDEX], False, ["one.safetensors"]),
        (["pytorch_model.bin"], False, []),
        (["pytorch_model.bin", "training_args.bin"], True, ["pytorch_model.bin"]),
        (["model.pt", "other.pth", "README.md"], True, ["model.pt", "other.pth"]),
    ],
)
def test_which_files_hold_the_tensors(
    tmp_path: Path, files: list[str], pickled: bool, expected: list[str]
) -> None:
    (tmp_path / INDEX).write_bytes(index_of("one.safetensors", "absent.safetensors"))
    assert tensor_names(tmp_path, files, pickled) == expected


def test_a_folder_comes_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(NAME).mkdir(parents=True)
    assert find_model(NAME) == Path(NAME)


def test_only_what_is_read_is_fetched_and_only_once(hub: Hub) -> None:
    others = {"model.gguf": b"g", "optimizer.bin": b"o", "original/params.json": b"{}", "script.py": b"import os"}
    shards = {"one.safetensors": SMALL, "two.safetensors": SMALL[:-1] + b"x", "consolidated.safetensors": SMALL}
    index = {INDEX: index_of("one.safetensors", "two.safetensors")}
    hub.put(NAME, CONFIGURATION | {"tokenizer.model": b"t"} | index | shards | others)
    folder = find_model(NAME)
    expected = ["config.json", INDEX, "one.safetensors", "tokenizer.model", "two.safetensors"]
    assert sorted(path.name for path in folder.iterdir()) == hub.fetched() == expected
    assert (folder / "two.safetensors").read_bytes() == shards["two.safetensors"]
    hub.asked.clear()
    assert find_model(NAME) == folder
    assert hub.fetched() == []


def test_a_revision(hub: Hub) -> None:
    hub.put(NAME, CONFIGURATION | {"model.safetensors": SMALL})
    hub.put(NAME, CONFIGURATION | {"model.safetensors": SMALL + b" "}, revision="v2/rc")
    assert (find_model(NAME) / "model.safetensors").read_bytes() == SMALL
    newer = find_model(f"{NAME}@v2/rc")
    assert (newer / "model.safetensors").read_bytes() == SMALL + b" "
    assert find_model(f"{NAME}@{newer.name}") == newer


def test_pickled_tensors_are_fetched_for_conversions_only(hub: Hub) -> None:
    hub.put(NAME, CONFIGURATION | {"pytorch_model.bin": b"pickle"})
    assert [path.name for path in find_model(NAME).iterdir()] == ["config.json"]
    assert (find_model(NAME, pickled=True) / "pytorch_model.bin").read_bytes() == b"pickle"


def test_a_repository_of_gguf_files_says_the_way(hub: Hub) -> None:
    hub.put(NAME, {"README.md": b"r", "small.Q8_0.gguf": b"g", "small.Q4_0.gguf": b"g"})
    with pytest.raises(CheckpointError, match=r"GGUF files only; fetch one with `hf download .* small.Q4_0.gguf`"):
        find_model(NAME)
    assert hub.fetched() == ["README.md"]


def test_a_connection_that_breaks_is_taken_up_where_it_was(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 500)  # what is kept of a broken one
    hub.put(NAME, CONFIGURATION | {"model.safetensors": SMALL})
    hub.breaks["model.safetensors"] = 1000
    assert (find_model(NAME) / "model.safetensors").read_bytes() == SMALL
    assert hub.sent["model.safetensors"] == len(SMALL)


def test_shards_that_came_before_a_break_are_not_fetched_again(hub: Hub) -> None:
    hub.put(NAME, CONFIGURATION | {"a.safetensors": SMALL})
    find_model(NAME)
    files = CONFIGURATION | {"a.safetensors": SMALL, "b.safetensors": SMALL + b" "}
    hub.put(NAME, files)
    hub.asked.clear()
    assert sorted(path.name for path in find_model(NAME).iterdir()) == sorted(files)
    assert hub.fetched() == ["b.safetensors"]


def test_damaged_tensors_are_dropped(hub: Hub) -> None:
    hub.put(NAME, CONFIGURATION | {"model.safetensors": SMALL})
    hub.damaged.add("model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"^model.safetensors came with the sha256 \w{64}, not \w{64}; fetch"
    ):
        find_model(NAME)
    hub.damaged.clear()
    assert (find_model(NAME) / "model.safetensors").read_bytes() == SMALL


def test_without_a_network_what_was_fetched_is_taken(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.put(NAME, CONFIGURATION | {"model.safetensors": SMALL})
    folder = find_model(NAME)
    hub.asked.clear()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert find_model(NAME) == find_model(f"{NAME}@{folder.name}") == folder
    with pytest.raises(CheckpointError, match=r"^leaves/large@main was not fetched before, and HF_HUB_OFFLINE"):
        find_model("leaves/large")
    assert hub.asked == []


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("absent", "^absent is no folder, and no name of a model"),
        ("/absent/folder", "^/absent/folder is no folder, and no name of a model"),
        ("a/b/c", "^a/b/c is no folder, and no name of a model"),
        ("leaves/absent", r"^leaves/absent is no folder here and cannot be fetched from the hub \(.*404"),
        (f"{NAME}@absent", rf"^{NAME}@absent is no folder here and cannot be fetched from the hub \(.*404"),
    ],
)
def test_what_is_nowhere(hub: Hub, name: str, sentence: str) -> None:
    hub.put(NAME, CONFIGURATION)
    with pytest.raises(CheckpointError, match=sentence):
        find_model(name)


# Publishing

# huggingface_hub hands its HTTP library what to upload in a way that is to go.
UPLOADING = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "small-8bit"
    (made / "plots").mkdir(parents=True)
    for name, data in {
        "config.json": b"{}",
        "model.safetensors": SMALL,
        "plots/kl.png": b"p",
        "secret": b"s",
    }.items():
        (made / name).write_bytes(data)
    return made


FILES = ["config.json", "model.safetensors", "plots/kl.png"]


@UPLOADING
def test_what_is_published_comes_back(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.tokens.add("mine")
    monkeypatch.setenv("HF_TOKEN", "mine")
    assert publish(folder, FILES, NAME, private=False) == f"{hub.endpoint}/{NAME}"
    found = hub.find(NAME, "main")
    assert found is not None and found[1] == {name: (folder / name).read_bytes() for name in FILES}
    assert (find_model(NAME) / "model.safetensors").read_bytes() == SMALL


@UPLOADING
def test_what_the_hub_has_is_not_sent_again(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.tokens.add("mine")
    monkeypatch.setenv("HF_TOKEN", "mine")
    publish(folder, FILES, NAME, private=False)
    assert len([line for line in hub.asked if line.startswith("PUT")]) == 2
    hub.asked.clear()
    (folder / "config.json").write_bytes(b"{ }")
    publish(folder, FILES, NAME, private=False)
    assert [line for line in hub.asked if line.startswith("PUT")] == []
    found = hub.find(NAME, "main")
    assert found is not None and found[1]["config.json"] == b"{ }"


def test_who_may_not_publish(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "another's")
    with pytest.raises(
        OutputError, match=rf"cannot be pushed to {NAME} \(.*401.*\); try again online, .*HF_TOKEN$"
    ):
        publish(folder, FILES, NAME, private=False)
    with pytest.raises(UsageError, match="small is no name of a repository"):
        publish(folder, FILES, "small", private=False)


def test_the_command_line_takes_a_name_and_the_environment_holds(hub: Hub, tmp_path: Path) -> None:
    """octavo inspect, in a process of its own: from the hub, then from its cache."""
    hub.put(NAME, CONFIGURATION | {"model.safetensors": save(small_tensors())})
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "OCTAVO_"))}
    for variables in ({"HF_ENDPOINT": hub.endpoint}, {"HF_HUB_OFFLINE": "1"}):
        shown = subprocess.run(
            [sys.executable, "-c", "from octavo.cli import main; main()", "inspect", f"{NAME}@main"],
            env={**kept, "HF_HOME": str(tmp_path / "home"), **variables},
            capture_output=True,
            text=True,
            timeout=300,
            check=True,
        )
        assert "LlamaForCausalLM" in shown.stdout
    assert hub.fetched() == ["config.json", "model.safetensors"]
