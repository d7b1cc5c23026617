"""What tests do with the page, by the names that people see."""

import re

from playwright.sync_api import Locator, Page


def choose_model(page: Page, name: str) -> None:
    page.locator("#model").click()
    page.locator(f'[data-model="{name}"] input[type=radio]').check()
    page.get_by_role("button", name="Close").click()


def set_preset(page: Page, name: str = "Debug-deterministic", tokens: int = 24) -> None:
    """How replies are drawn, from now on in this profile."""
    page.get_by_label("Preset").filter(visible=True).select_option(name)
    page.get_by_label("New tokens").filter(visible=True).fill(str(tokens))
    page.get_by_label("New tokens").filter(visible=True).blur()


def say(page: Page, text: str) -> None:
    """Send a message and wait for its reply to end."""
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")
    settled(page)


def settled(page: Page) -> None:
    page.locator(".messages[aria-busy=false]").wait_for()
    page.locator(".message.writing").wait_for(state="detached")


def texts(page: Page) -> list[str]:
    """What is said in the conversation, in view or not."""
    return [text.strip() for text in page.locator(".message .body").all_text_contents()]


def button(page: Page, name: str) -> Locator:
    return page.get_by_role("button", name=name, exact=True).filter(visible=True)


def number(text: str) -> float:
    """The first number in a text."""
    return float(re.search(r"\d+(\.\d+)?", text)[0])
