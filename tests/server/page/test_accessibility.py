"""axe-core finds nothing serious in any view, light or dark, wide or narrow."""

import pytest
from axe_playwright_python.sync_playwright import Axe

from page_testing import button, choose_model, say, set_preset
from serving import wait_until

SERIOUS = ("serious", "critical")
PHONE = {"width": 360, "height": 740}


def serious(page):
    """What axe complains of; it is a script of its own, so these pages are opened without our policy."""
    results = Axe().run(page)
    return [
        (violation["id"], [node["html"][:160] for node in violation["nodes"]])
        for violation in results.response["violations"]
        if violation["impact"] in SERIOUS
    ]


def chat(page):
    set_preset(page, tokens=8)
    say(page, "Once upon a time")
    button(page, "Regenerate").click()
    page.locator(".versions").wait_for()


def chat_menu(page):
    page.locator("#model").click()
    page.locator(".models li").first.wait_for()


def exact_prompt(page):
    page.get_by_label("Message", exact=True).fill("Hello")
    button(page, "Exact prompt").click()
    page.locator(".chips").wait_for()


def text(page):
    set_preset(page, "Model as it is", tokens=24)
    page.get_by_label("Text", exact=True).fill("Once upon a time")
    page.get_by_text("Next token").click()
    button(page, "Generate").click()
    wait_until(lambda: page.locator(".token").count() == 24)
    page.locator(".token").nth(2).click()
    page.locator(".panel tbody tr").first.wait_for()


def compare(page):
    page.get_by_label("Prompt", exact=True).fill("Once upon a time")
    page.get_by_role("combobox", name="B is fed what A writes", exact=True).select_option("four")
    page.get_by_label("Tokens", exact=True).fill("12")
    button(page, "Compare").click()
    wait_until(lambda: page.locator(".token").count() == 12)
    page.locator(".token").nth(3).click()


def quantization(page):
    page.get_by_role("combobox", name="Model", exact=True).select_option("four")
    page.get_by_text("How it was solved").wait_for()


VIEWS = {
    "chat": [chat, chat_menu, exact_prompt],
    "text": [text],
    "compare": [compare],
    "quantization": [quantization],
}


@pytest.mark.parametrize("look", ["light", "dark"])
@pytest.mark.parametrize(("view", "use"), [(view, use) for view, uses in VIEWS.items() for use in uses])
def test_nothing_serious(open_page, view, use, look):
    page = open_page(view, color_scheme=look, bypass_csp=True)
    use(page)
    assert serious(page) == []


@pytest.mark.parametrize("view", VIEWS)
def test_a_phone_has_room_for_everything(open_page, view):
    page = open_page(view, viewport=PHONE, bypass_csp=True)
    if view == "chat":  # its settings are in a drawer
        say(page, "Once upon a time")
    else:
        VIEWS[view][0](page)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= PHONE["width"]
    assert serious(page) == []


def test_the_drawers_of_a_phone_and_the_keyboard(open_page):
    page = open_page(viewport=PHONE)
    settings = page.get_by_role("button", name="Settings")
    settings.click()
    page.get_by_label("System prompt").wait_for()
    assert settings.get_attribute("aria-expanded") == "true"
    page.keyboard.press("Escape")
    page.get_by_label("System prompt").wait_for(state="hidden")
    assert settings.get_attribute("aria-expanded") == "false"
    page.get_by_role("button", name="Chats").click()
    button(page, "New chat").wait_for()


def test_the_theme_is_chosen_and_kept(open_page):
    page = open_page(color_scheme="light")
    paper = "() => getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(paper)
    for _ in range(2):
        page.get_by_role("button", name="Theme").click()
    assert page.evaluate(paper) != light
    page.reload()
    page.get_by_role("heading", level=1).wait_for()
    assert page.evaluate(paper) != light and page.get_by_role("button", name="Theme: dark").count() == 1


def test_a_chosen_model_is_kept(open_page):
    page = open_page()
    choose_model(page, "four")
    page.reload()
    page.get_by_role("button", name="Model: four, ready").wait_for()
