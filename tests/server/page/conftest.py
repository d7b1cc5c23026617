"""The page in a browser, before a real server with a real small model. Every page is watched while it is used."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from browser import chromium
from octavo.model.llama import FusedHead
from serving import Running, bytewise_model, load_on_cpu, running, vicuna_stories

OpenPage = Callable[..., Page]
SECONDS_PER_TOKEN = 0.03  # of the slow model: a reply can be stopped


def slowly(folder: Path, progress=None):
    """The same model; one whose folder is called "slow…" takes its time for every token."""
    network, tokenizer = load_on_cpu(folder, progress)
    if not folder.name.startswith("slow"):
        return network, tokenizer

    def head(hidden):
        time.sleep(SECONDS_PER_TOKEN)
        return network.head(hidden)

    return dataclasses.replace(network, head=FusedHead(head, "slow", {})), tokenizer


@pytest.fixture(scope="session")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="session")
def folders(stories_folder, tmp_path_factory) -> dict[str, Path]:
    """stories260K as a Vicuna; the same, slow; with 4 bits; and a random model with a template of its own."""
    import octavo

    folder = tmp_path_factory.mktemp("models")
    stories = vicuna_stories(stories_folder, folder)
    slow = (folder / "slow-vicuna-v1.1").resolve()
    slow.symlink_to(stories)
    plan = octavo.SchemePlan(octavo.QuantScheme(4, 32, symmetric=True))
    text = Path(folder / "calibration.txt")
    text.write_text("Once upon a time there was a little girl. She liked to play in the park. " * 200)
    spec = octavo.CalibrationSpec(str(text), 2, 64)
    octavo.quantize(stories, folder / "four-vicuna-v1.1", octavo.Recipe(plan), spec, device="cpu")
    (folder / "four-vicuna-v1.1" / "README.md").write_text(
        "---\nlicense: mit\n---\n# A card\n\n| text | perplexity |\n|---|---|\n| stories | 8.84 |\n\n"
        "![plot](https://example.com/plot.png) <script>document.title='broken'</script>\n"
    )
    return {
        "stories": stories,
        "slow": slow,
        "four": folder / "four-vicuna-v1.1",
        "bytes": bytewise_model(folder / "bytes"),
    }


@pytest.fixture(scope="session")
def server(folders):
    with running(folders, load=slowly) as up:
        yield up


@pytest.fixture
def open_page(browser: Browser, server: Running):
    """Opens the page at a view, in a browser profile of its own; fails where it complains or asks other hosts."""
    contexts, complaints = [], []

    def open_page(view: str = "chat", *, url: str | None = None, complains: bool = False, **options) -> Page:
        address = url or server.url
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        context.set_default_timeout(20_000)
        contexts.append(context)
        page = context.new_page()

        def note(kind: str, text: str) -> None:
            # That a call was refused is the server's business; the page shows it.
            if not complains and "Failed to load resource" not in text:
                complaints.append(f"{kind}: {text}")

        page.on(
            "console", lambda message: message.type in ("error", "warning") and note(message.type, message.text)
        )
        page.on("pageerror", lambda error: note("uncaught", str(error)))
        page.on("request", lambda request: foreign(request.url, address) and note("asks", request.url))
        page.goto(f"{address}/#{view}")
        page.get_by_role("heading", level=1).first.wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def foreign(url: str, own: str) -> bool:
    """Whether a request leaves the page's own host."""
    return not url.startswith((f"{own}/", "data:", f"blob:{own}/"))
