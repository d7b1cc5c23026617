"""Text generation: every token with its probability, another chosen, undone, measured."""

import math

import pytest

from page_testing import button, choose_model, number, set_preset
from serving import wait_until

BEGINNING = "Once upon a time, there was"


@pytest.fixture
def page(open_page):
    page = open_page("text")
    set_preset(page, tokens=8)
    page.get_by_label("Text", exact=True).fill(BEGINNING)
    return page


def generated(page):
    """The text as its tokens show it, after the model has ended."""
    button(page, "Generate").wait_for()
    return page.locator(".token-text").text_content()


def generate(page, name="Generate"):
    button(page, name).click()
    button(page, "Stop").wait_for(state="hidden")
    return generated(page)


def completion(server, prompt, **options):
    body = {"model": "stories", "prompt": prompt, "max_tokens": 8, "temperature": 0, **options}
    return server.post("/v1/completions", body).json()["choices"][0]


def test_a_text_goes_on_in_place(page, server):
    first = generate(page)
    assert first == BEGINNING + completion(server, BEGINNING)["text"]
    assert page.locator(".token").count() == 8
    second = generate(page)
    assert second.startswith(first) and page.locator(".token").count() == 16
    button(page, "Undo").click()
    assert generated(page) == first
    button(page, "Redo").click()
    assert generated(page) == second
    page.get_by_role("radio", name="Edit").check(force=True)
    assert page.get_by_label("Text", exact=True).input_value() == second
    page.get_by_label("Text", exact=True).fill(first + " and then")
    page.get_by_role("radio", name="Tokens").check(force=True)
    assert page.locator(".token").count() == 8, "what stands before the change keeps its tokens"
    assert "8 tokens in" in page.get_by_text("tokens/s").inner_text()
    wait_until(lambda: "/ 512 tokens" in page.locator(".work-head [role=status]").inner_text())


def test_a_token_has_the_probability_that_the_model_gave_it(page, server):
    generate(page)
    scores = completion(server, BEGINNING, logprobs=10)["logprobs"]
    tokens = page.locator(".token")
    shown = [tokens.nth(place).evaluate("node => node.style.getPropertyValue('--level')") for place in range(8)]
    assert [float(level) for level in shown] == pytest.approx(
        [(1 - math.exp(logprob)) ** 2 for logprob in scores["token_logprobs"]], abs=2e-3
    )
    tokens.nth(2).hover()
    rows = page.locator(".beside tr")
    wait_until(lambda: rows.count() == 10)
    likeliest = sorted(scores["top_logprobs"][2].values(), reverse=True)
    assert number(rows.nth(0).inner_text()) == pytest.approx(100 * math.exp(likeliest[0]), rel=0.01)


def test_another_token_is_chosen_and_gone_on_from(page, server):
    before = generate(page)
    tokens = page.locator(".token")
    kept = BEGINNING + "".join(tokens.nth(place).text_content() for place in range(2))
    tokens.nth(2).click()
    choice = page.locator(".beside.pinned tr").nth(1).get_by_role("button")
    other = choice.inner_text().replace("␣", " ")
    choice.click()
    wait_until(lambda: page.locator(".token").count() == 11)
    after = generated(page)
    assert after.startswith(kept + other) and after != before
    assert after == kept + other + completion(server, kept + other)["text"]
    button(page, "Undo").click()
    button(page, "Undo").click()
    assert generated(page) == before, "what was left out comes back"


def test_the_keyboard_reaches_every_token(page):
    generate(page)
    page.get_by_role("group", name="Tokens of the text").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("() => document.activeElement.dataset.index") == "2"
    page.keyboard.press("Enter")
    page.locator(".beside.pinned").wait_for()
    page.keyboard.press("Escape")
    page.locator(".beside").wait_for(state="hidden")


def test_stop_and_regenerate(page, server):
    choose_model(page, "slow")
    set_preset(page, "Model as it is", tokens=300)
    engine = next(each.engine for each in server.shelf.served if each.name == "slow")
    button(page, "Generate").click()
    wait_until(lambda: page.locator(".token").count() > 4)
    button(page, "Stop").click()
    wait_until(lambda: engine.status().writing == 0)
    stopped = generated(page)
    assert len(stopped) > len(BEGINNING)
    choose_model(page, "stories")
    set_preset(page, "Model as it is", tokens=8)
    again = generate(page, "Regenerate")
    assert page.locator(".token").count() == 8 and again.startswith(BEGINNING) and again != stopped


def test_input_beside_output(page, server):
    page.get_by_role("radio", name="Default").check(force=True)
    expected = completion(server, BEGINNING)["text"]
    assert generate(page) == expected
    assert page.get_by_label("Text", exact=True).input_value() == BEGINNING
    assert generate(page) == expected, "it is written anew"
    assert generate(page, "Continue").startswith(expected) and page.locator(".token").count() == 16
    page.get_by_role("radio", name="Raw").check(force=True)
    assert page.get_by_label("Output").input_value().startswith(expected)
    page.get_by_role("radio", name="Notebook").check(force=True)
    assert page.get_by_label("Text", exact=True).input_value().startswith(BEGINNING + expected)


def test_raw_and_rendered(page):
    page.get_by_label("Text", exact=True).fill("# A title\n\n*soft*")
    page.get_by_role("radio", name="Rendered").check(force=True)
    page.get_by_role("heading", name="A title").wait_for()
    assert page.locator(".rendered em").inner_text() == "soft"


def test_the_next_token_before_and_after_the_samplers(page, server):
    set_preset(page, "LLaMA-Precise", tokens=8)
    page.get_by_text("Next token").click()
    rows = page.locator(".panel tbody tr")
    wait_until(lambda: rows.count() == 10)
    top = completion(server, BEGINNING, max_tokens=1, logprobs=1)["logprobs"]
    first = rows.nth(0).locator("td").all_inner_texts()
    assert first[0].replace("␣", " ") == top["tokens"][0]
    assert number(first[1]) == pytest.approx(100 * math.exp(top["token_logprobs"][0]), rel=0.01)
    drawn = rows.locator("td:nth-child(3)").all_inner_texts()
    assert drawn[0] == "100 %" and drawn[1] == "cut", "top-p 0.1 leaves the likeliest"
    rows.nth(1).get_by_role("button").click()
    page.get_by_role("radio", name="Tokens").check(force=True)
    assert page.locator(".token").count() == 1


def test_the_perplexity_of_a_text(page, server):
    page.get_by_label("Text", exact=True).fill("Once upon a time, there was a café 😀 for Lily.")
    button(page, "Perplexity").click()
    result = page.get_by_text("Perplexity ", exact=False).filter(has_text="nats")
    result.wait_for()
    text = page.get_by_label("Text", exact=True).input_value()
    scores = completion(server, text, max_tokens=0, echo=True, logprobs=0)["logprobs"]["token_logprobs"][1:]
    assert number(result.inner_text()) == pytest.approx(math.exp(-sum(scores) / len(scores)), abs=1e-3)
    assert page.locator(".token-text").text_content() == text and page.locator(".token").count() == len(scores)
    assert page.locator(".token").last.text_content() == ".", "an emoji is one character of two halves"


def test_texts_are_saved_as_prompts(page):
    button(page, "Save…").click()
    page.get_by_role("textbox", name="Name").fill("A beginning")
    # What is written while the name is asked, as by a reply that goes on, is not what was to be saved.
    page.locator(".text-view textarea[aria-label=Text]").evaluate(
        "box => { box.value = 'something else'; box.dispatchEvent(new Event('input')); }"
    )
    button(page, "Save").click()
    page.locator("option", has_text="A beginning").wait_for(state="attached")
    page.reload()
    assert page.get_by_label("Text", exact=True).input_value() == "something else"
    page.get_by_label("Saved prompts").select_option("A beginning")
    assert page.get_by_label("Text", exact=True).input_value() == BEGINNING
