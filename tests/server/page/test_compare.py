"""Two models side by side, the file of a comparison, and the view of a quantization."""

import json
import math

import pytest

from octavo.records import read_json
from page_testing import button, number, set_preset
from serving import events_of, wait_until


def choice(page, name):
    return page.get_by_role("combobox", name=name, exact=True)


def compare(page, *, tokens=12, question="Once upon a time"):
    choice(page, "A writes").select_option("stories")
    choice(page, "B is fed what A writes").select_option("four")
    page.get_by_label("Prompt", exact=True).fill(question)
    page.get_by_label("Tokens", exact=True).fill(str(tokens))
    button(page, "Compare").click()
    wait_until(lambda: page.locator(".token").count() == tokens)
    button(page, "Compare").wait_for()


def numbers(page):
    return dict(zip(*(page.locator(f".numbers {tag}").all_inner_texts() for tag in ("dt", "dd")), strict=True))


@pytest.fixture
def page(open_page):
    page = open_page("compare")
    set_preset(page)
    return page


def events(server, **options):
    prompt = server.post(
        "/apply_template", {"model": "stories", "messages": [{"role": "user", "content": "Once upon a time"}]}
    )
    body = {
        "model": "stories",
        "second": "four",
        "prompt": prompt.json()["tokens"],
        "max_tokens": 12,
        "temperature": 0,
    }
    return events_of(server.post("/page/compare", {**body, **options}).text)[:-1]


def test_one_writes_and_the_other_is_measured_on_it(page, server):
    compare(page)
    tokens = [token for event in events(server) for token in event.get("tokens", [])]
    divergences = [token["divergence"] for token in tokens]
    shown = numbers(page)
    assert shown["Tokens"] == "12"
    assert number(shown["Mean KL(A ‖ B)"]) == pytest.approx(sum(divergences) / 12, abs=1e-4)
    assert number(shown["Largest"]) == pytest.approx(max(divergences), abs=1e-4) and max(divergences) > 0.001
    agreed = sum(token["agrees"] for token in tokens)
    assert number(shown["Same likeliest token"]) == pytest.approx(100 * agreed / 12, abs=0.06)
    assert page.locator(".token.marked").count() == 12 - agreed
    rows = page.locator(".summary tbody tr")
    assert all("tokens/s" in row and "kB" in row for row in rows.all_inner_texts())
    assert page.locator(".chart rect").count() == 12
    page.locator(".token").nth(3).click()
    tables = page.locator(".beside.pinned table")
    assert tables.locator("caption").all_inner_texts() == ["A: stories", "B: four"]
    assert tables.first.locator("tr").count() == 10
    for place, score in enumerate(tokens[3]["scores"]):
        _, text, logprob = score["likeliest"][0]
        first = tables.nth(place).locator("tr").first.locator("td").all_inner_texts()
        assert first[0].replace("␣", " ") == text
        assert number(first[1]) == pytest.approx(100 * math.exp(logprob), rel=0.01)


def test_swap_and_stop(page, server):
    choice(page, "A writes").select_option("slow")
    choice(page, "B is fed what A writes").select_option("stories")
    page.get_by_role("radio", name="a text").check(force=True)
    page.get_by_label("Prompt", exact=True).fill("Once")
    page.get_by_label("Tokens", exact=True).fill("400")
    button(page, "Swap A and B").click()
    assert choice(page, "A writes").input_value() == "stories"
    assert choice(page, "B is fed what A writes").input_value() == "slow"
    button(page, "Compare").click()
    wait_until(lambda: page.locator(".token").count() > 3)
    button(page, "Stop").click()
    button(page, "Compare").wait_for()
    assert 3 < page.locator(".token").count() < 200
    tokens = page.locator(".token").count()
    page.wait_for_timeout(200)
    assert page.locator(".token").count() == tokens


def test_a_comparison_is_exported_and_opens_again(page, open_page, tmp_path):
    compare(page)
    with page.expect_download() as download:
        button(page, "Export").click()
    path = tmp_path / download.value.suggested_filename
    download.value.save_as(path)
    values = json.loads(path.read_text())
    assert path.name == "comparison stories four.json"
    assert (
        values["format"] == "octavo-comparison" and len(values["tokens"]) == 12 and values["sampling"]["seed"] >= 0
    )
    other = open_page("compare")
    with other.expect_file_chooser() as chooser:
        button(other, "Open").click()
    chooser.value.set_files(path)
    wait_until(lambda: other.locator(".token").count() == 12)
    assert numbers(other) == numbers(page)
    assert other.get_by_label("Prompt", exact=True).input_value() == "Once upon a time"
    values["tokens"][3]["scores"][0]["likeliest"][0] = "broken"
    path.write_text(json.dumps(values))
    with other.expect_file_chooser() as chooser:
        button(other, "Open").click()
    chooser.value.set_files(path)
    other.get_by_text("is damaged").wait_for()


def test_models_that_cannot_be_compared_are_refused(page):
    choice(page, "A writes").select_option("stories")
    choice(page, "B is fed what A writes").select_option("bytes")
    page.get_by_label("Prompt", exact=True).fill("Once")
    button(page, "Compare").click()
    page.get_by_text("different tokenizers").first.wait_for()


def test_how_a_model_is_quantized(open_page, folders):
    page = open_page("quantization/four")
    page.get_by_text("How it was solved").wait_for()
    shown = numbers(page)
    assert shown["Scheme"] == "4-bit-32g symmetric" and shown["Format"] == "gptq"
    record = read_json(folders["four"] / "octavo.json")
    assert page.locator(".chart circle").count() == len(record["linears"]) == 35
    page.get_by_text("All 35 linears").click()
    first = record["linears"][0]
    row = page.locator("details tbody tr").first.locator("td").all_inner_texts()
    assert row[0] == first["name"] and float(row[2]) == pytest.approx(first["loss"], rel=1e-3)
    assert "vLLM, GPU" in page.get_by_role("group", name="engine loads").inner_text()
    assert record["files"]["config.json"] in page.get_by_role("group", name="file SHA-256").inner_text()
    card = page.locator(".card")
    assert card.get_by_role("heading", name="A card").count() == 1 and "8.84" in card.inner_text()
    assert "license: mit" not in card.inner_text() and "[picture: plot]" in card.inner_text()
    assert page.title() == "Quantization · Octavo"
    choice(page, "Model").select_option("bytes")
    page.get_by_text("This folder has no record").wait_for()
    assert numbers(page)["Scheme"] == "dense"


def test_it_is_reached_from_the_menu_of_models(open_page):
    page = open_page()
    page.locator("#model").click()
    page.locator('[data-model="four"]').get_by_role("link").click()
    page.get_by_role("heading", level=1, name="Quantization").wait_for()
    page.get_by_text("How it was solved").wait_for()
