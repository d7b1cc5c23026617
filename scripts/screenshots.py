"""`make screenshots`: the page as people see it, in a real browser before a real server, to be looked at."""

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page

ROOT = Path(__file__).parent.parent
OUT, PICTURES = ROOT / "build" / "screenshots", ROOT / "docs" / "pictures"
WIDTHS = {"desktop": {"width": 1280, "height": 820}, "phone": {"width": 390, "height": 844}}
LOOKS = ("light", "dark")
QUESTION = "Write three short tips for taking care of old books."
BEGINNING = "The first printed books were made by hand, and"

sys.path.insert(0, str(ROOT / "tests"))


def main() -> None:
    from browser import chromium

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "models", nargs="*", default=["demo"], help="what to serve: NAME=FOLDER, or the demo's models"
    )
    parser.add_argument("--readme", action="store_true", help="renew the pictures of the README")
    arguments = parser.parse_args()
    with served(arguments.models) as url, chromium() as browser:
        OUT.mkdir(parents=True, exist_ok=True)
        for width, size in WIDTHS.items():
            for look in LOOKS:
                for name, act in VIEWS.items():
                    picture(
                        browser, url, act, OUT / f"{name}-{width}-{look}.png", viewport=size, color_scheme=look
                    )
    if arguments.readme:
        renew()


@contextmanager
def served(models: list[str]) -> Iterator[str]:
    """The server as a process; its address once it is ready."""
    import httpx2

    command = [
        sys.executable,
        "-c",
        "from octavo.cli import main; main()",
        "serve",
        *models,
        "--port",
        "0",
        "--cache",
        "0.3",
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None, "it is a pipe"
    try:
        url = next(re.findall(r"http://\S+", line)[0] for line in process.stderr if "listening on" in line)
        while httpx2.get(f"{url}/health", timeout=60).status_code != 200:
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait()


def picture(browser: Browser, url: str, act: Callable[[Page], None], path: Path, **options: object) -> None:
    context = browser.new_context(**options)  # type: ignore[arg-type]
    context.set_default_timeout(120_000)
    page = context.new_page()
    page.goto(url)
    page.locator('#model[data-state="ready"]').wait_for()
    page.evaluate("() => localStorage.setItem('octavo-sampling', JSON.stringify({seed: '7', max_tokens: 96}))")
    page.reload()
    page.locator('#model[data-state="ready"]').wait_for()
    act(page)
    page.wait_for_timeout(400)
    page.screenshot(path=path)
    print(path.relative_to(ROOT))
    context.close()


def visit(page: Page, view: str) -> None:
    page.get_by_role("link", name=view, exact=True).click()
    page.get_by_role("heading", level=1, name=view).wait_for()


def chat(page: Page) -> None:
    page.get_by_label("Message", exact=True).fill(QUESTION)
    page.keyboard.press("Enter")
    page.locator(".message.assistant .statistics", has_text="tokens/s").wait_for()


def exact_prompt(page: Page) -> None:
    page.get_by_label("Message", exact=True).fill(QUESTION)
    page.get_by_role("button", name="Exact prompt").click()
    page.locator(".chips").wait_for()


def models(page: Page) -> None:
    page.locator("#model").click()
    page.locator(".models li").first.wait_for()


def text(page: Page) -> None:
    visit(page, "Text")
    page.get_by_label("Text", exact=True).fill(BEGINNING)
    page.get_by_text("Next token").click()
    page.get_by_role("button", name="Generate", exact=True).click()
    page.get_by_text("tokens/s").wait_for()
    page.locator(".token").nth(6).click()
    page.locator(".panel tbody tr").first.wait_for()


def compare(page: Page) -> None:
    visit(page, "Compare")
    names = page.get_by_role("combobox", name="A writes", exact=True).locator("option").all_inner_texts()
    full, small = max(names, key=lambda name: "bit" not in name), next(name for name in names if "4bit" in name)
    page.get_by_role("combobox", name="A writes", exact=True).select_option(full)
    page.get_by_role("combobox", name="B is fed what A writes", exact=True).select_option(small)
    page.get_by_label("Prompt", exact=True).fill(QUESTION)
    page.get_by_role("button", name="Compare", exact=True).click()
    page.locator(".summary").wait_for()
    page.get_by_role("button", name="Compare", exact=True).wait_for()
    page.locator(".token.marked").first.click()


def quantization(page: Page) -> None:
    visit(page, "Quantization")
    page.get_by_text("Where it loads").wait_for()


VIEWS = {
    "chat": chat, "prompt": exact_prompt, "models": models, "text": text, "compare": compare,
    "quantization": quantization,
}  # fmt: skip


def renew() -> None:
    """The README's pictures: small enough to be kept."""
    from PIL import Image

    PICTURES.mkdir(exist_ok=True)
    for source, name in (
        ("chat-desktop-light", "chat"),
        ("compare-desktop-dark", "compare"),
        ("text-desktop-light", "text"),
    ):
        with Image.open(OUT / f"{source}.png") as image:
            image.convert("RGB").save(PICTURES / f"{name}.webp", quality=80, method=6)


if __name__ == "__main__":
    main()
