"""The chat: every button, and that nothing that was said is ever lost."""

import json

import pytest

from octavo.server.conversation import load
from page_testing import button, choose_model, number, say, set_preset, settled, texts
from serving import running, wait_until

STORY = "Once upon a time"


def statistics(page):
    return page.locator(".message .statistics").all_text_contents()


def test_a_reply_streams_and_tells_how_it_came_about(open_page, server):
    page = open_page()
    choose_model(page, "slow")
    set_preset(page, tokens=40)
    page.get_by_label("Message", exact=True).fill(STORY)
    page.keyboard.press("Enter")
    page.locator(".message.writing").wait_for()
    lengths = []
    while page.locator(".message.writing").count():
        lengths.append(len(texts(page)[-1]))
    assert len(set(lengths)) > 3, "the text grows while it is written"
    said = {"model": "slow", "messages": [{"role": "user", "content": STORY}], "max_tokens": 40, "temperature": 0}
    expected = server.post("/v1/chat/completions", said).json()
    assert texts(page) == [STORY, expected["choices"][0]["message"]["content"].strip()]
    facts = statistics(page)[-1]
    total = expected["usage"]["total_tokens"]
    for fact in ("slow", "40 tokens", "tokens/s", "first after", f"context {total} / 512", "cache"):
        assert fact in facts
    assert 0 < number(facts.split("·")[3]) < 40, "the slow model takes 30 ms a token"


def test_stop_frees_the_slot_within_a_token_and_keeps_what_was_written(open_page, server):
    page = open_page()
    choose_model(page, "slow")
    set_preset(page, tokens=300)
    engine = next(each.engine for each in server.shelf.served if each.name == "slow")
    page.get_by_label("Message", exact=True).fill(STORY)
    page.keyboard.press("Enter")
    wait_until(lambda: len(texts(page)) == 2 and len(texts(page)[1]) > 5)
    before = engine.status()
    assert before.writing == 1
    button(page, "Stop").click()
    settled(page)
    wait_until(lambda: engine.status().writing == 0)
    after = engine.status()
    assert after.cancelled == before.cancelled + 1 and after.tokens_written < 150
    assert "stopped" in statistics(page)[-1] and len(texts(page)[-1]) > 5
    written = texts(page)[-1]
    page.reload()
    page.locator(".message.assistant").wait_for()
    assert texts(page)[-1] == written


def test_a_tab_that_is_closed_frees_the_slot_and_its_history_has_what_was_written(open_page, server):
    page = open_page()
    choose_model(page, "slow")
    set_preset(page, tokens=300)
    engine = next(each.engine for each in server.shelf.served if each.name == "slow")
    page.get_by_label("Message", exact=True).fill(STORY)
    page.keyboard.press("Enter")
    wait_until(lambda: len(texts(page)) == 2 and len(texts(page)[1]) > 60)
    context = page.context
    page.close()
    wait_until(lambda: engine.status().writing == 0)
    again = context.new_page()
    again.goto(server.url)
    again.locator(".message.assistant").wait_for()
    assert "interrupted" in statistics(again)[-1] and len(texts(again)[-1]) > 20
    button(again, "Continue").click()
    again.locator(".message.writing").wait_for()
    button(again, "Stop").click()
    settled(again)
    assert again.locator(".versions > span").text_content() == "2 / 2"


def test_versions_of_everything_are_kept(open_page):
    page = open_page()
    set_preset(page, "Model as it is", tokens=8)
    page.get_by_label("Seed").fill("1")
    page.get_by_label("Seed").blur()
    say(page, STORY)
    first = texts(page)[-1]
    page.get_by_label("Seed").fill("2")
    page.get_by_label("Seed").blur()
    button(page, "Regenerate").click()
    settled(page)
    second = texts(page)[-1]
    assert first != second
    button(page, "Earlier version").click()
    page.get_by_text("1 / 2").wait_for()
    assert texts(page)[-1] == first
    say(page, "And then?")
    page.locator(".message.user").first.get_by_role("button", name="Edit").click()
    page.get_by_label("New version of the message").fill("There was a cat")
    button(page, "Save and send").click()
    settled(page)
    assert texts(page)[0] == "There was a cat" and len(texts(page)) == 2, "the edit begins a branch"
    button(page, "Earlier version").first.click()
    page.locator(".message").nth(3).wait_for()
    assert texts(page)[:3] == [STORY, first, "And then?"], "what was below the edit is still there"
    page.locator(".message.assistant").last.get_by_role("button", name="Edit").click()
    page.get_by_label("New version of the message").fill("The end.")
    button(page, "Save").click()
    page.get_by_text("The end.").wait_for()
    assert "edited" in statistics(page)[-1]
    page.reload()
    page.get_by_text("The end.").wait_for()
    assert texts(page)[:3] == [STORY, first, "And then?"]
    button(page, "Continue").last.click()
    settled(page)
    assert texts(page)[-1].startswith("The end.") and len(texts(page)[-1]) > 10
    page.locator(".message.user").last.get_by_role("button", name="Answer again").click()
    settled(page)
    assert page.locator(".message").last.locator(".versions > span").text_content() == "4 / 4"


def test_what_a_reply_starts_with_and_what_the_user_might_say(open_page):
    page = open_page()
    set_preset(page, tokens=8)
    page.get_by_label("Start reply with").fill("The little dog")
    say(page, STORY)
    assert texts(page)[-1].startswith("The little dog") and len(texts(page)[-1]) > 20
    page.get_by_label("Message", exact=True).fill("I think")
    button(page, "Impersonate").click()
    wait_until(lambda: len(page.get_by_label("Message", exact=True).input_value()) > 12)
    settled(page)
    assert page.get_by_label("Message", exact=True).input_value().startswith("I think")


def test_the_exact_prompt_is_one_click_away(open_page, server):
    page = open_page()
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_label("System prompt").blur()
    page.get_by_label("Message", exact=True).fill("Hello </s>")
    button(page, "Exact prompt").click()
    prompt = page.get_by_label("Prompt", exact=True)
    prompt.wait_for()
    assert prompt.inner_text() == "Be brief. USER: Hello </s> ASSISTANT:"
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello </s>"}]
    expected = server.post("/tokenize", {"model": "stories", "messages": messages}).json()
    shown = page.locator(".chips small").all_inner_texts()
    assert [int(token) for token in shown] == expected["tokens"] and shown.count("2") == 0
    assert page.locator(".chips .control-token").all_inner_texts() == ["<s>\n1"]
    assert "Vicuna v1.1" in page.get_by_label("Template", exact=True).inner_text()
    button(page, "Close").click()
    count = page.locator(".count")
    wait_until(lambda: count.inner_text() == f"{expected['count']} / 512")
    assert page.get_by_role("meter").get_attribute("aria-valuenow") == str(expected["count"])


def test_overflow_is_said_and_nothing_is_dropped(open_page):
    page = open_page()
    page.get_by_label("Message", exact=True).fill("word " * 600)
    page.get_by_text("too long").wait_for()
    page.keyboard.press("Enter")
    alert = page.get_by_role("alert").filter(visible=True)
    alert.wait_for()
    assert "maximum context length is 512" in alert.inner_text() and "Nothing was left out" in alert.inner_text()
    assert texts(page)[0].startswith("word word") and len(texts(page)) == 1


def test_presets_are_those_of_the_reference_and_ones_own(open_page):
    page = open_page()
    values = {
        name: page.get_by_role("spinbutton", name=name)
        for name in ("Temperature", "Top-k", "Top-p", "Min-p", "Repetition penalty")
    }
    for name, expected in {
        "LLaMA-Precise": ["0.7", "40", "0.1", "0", "1.18"],
        "Default": ["0.7", "40", "0.5", "0", "1.2"],
        "Naive": ["0.7", "50", "0.85", "0", "1"],
        "Debug-deterministic": ["0", "0", "1", "0", "1"],
    }.items():
        page.get_by_label("Preset").select_option(name)
        assert [control.input_value() for control in values.values()] == expected
    values["Temperature"].fill("1.5")
    values["Temperature"].blur()
    assert page.get_by_label("Preset").input_value() == "Own values"
    button(page, "Save as…").click()
    page.get_by_role("textbox", name="Name").fill("Wild")
    button(page, "Save").click()
    page.reload()
    page.get_by_label("Preset").select_option("Naive")
    page.get_by_label("Preset").select_option("Wild")
    assert values["Temperature"].input_value() == "1.5"
    sent = []
    page.on("request", lambda request: sent.append(request.post_data) if "completions" in request.url else None)
    page.get_by_label("Stop at").fill("cat\ndog")
    page.get_by_label("Stop at").blur()
    page.get_by_label("New tokens").fill("5")
    page.get_by_label("New tokens").blur()
    say(page, STORY)
    body = json.loads(sent[0])
    assert (body["temperature"], body["stop"], body["max_tokens"]) == (1.5, ["cat", "dog"], 5)


def test_chats_are_named_searched_exported_imported_and_removed(open_page, tmp_path):
    page = open_page()
    set_preset(page, tokens=6)
    page.get_by_label("System prompt").fill("Be kind.")
    page.get_by_label("System prompt").blur()
    say(page, STORY)
    button(page, "Regenerate").click()
    settled(page)
    shown = texts(page)
    button(page, "New chat").click()
    say(page, "A second chat about giraffes")
    listed = page.locator(".chat-name")
    assert listed.all_inner_texts() == ["A second chat about giraffes", STORY]
    page.get_by_label("Search chats").fill("upon GIRAFFES")
    page.get_by_text("Nothing found.").wait_for()
    page.get_by_label("Search chats").fill("upon time")
    wait_until(lambda: page.locator(".chat-name").count() == 1)
    assert listed.all_inner_texts() == [STORY]
    button(page, f"More for {STORY}").click()
    button(page, "Rename").click()
    page.get_by_role("textbox", name="Name").fill("A story")
    button(page, "Save").click()
    page.get_by_label("Search chats").fill("")
    wait_until(lambda: listed.count() == 2)
    button(page, "More for A story").click()
    with page.expect_download() as download:
        button(page, "Export").click()
    path = tmp_path / download.value.suggested_filename
    download.value.save_as(path)
    values = json.loads(path.read_text())
    assert (
        path.name == "A story.json" and values["format"] == "octavo-conversation" and len(values["messages"]) == 4
    )
    conversation = load(path)  # what `octavo chat` reads
    assert [message.content.strip() for message in conversation.messages] == ["Be kind.", *shown]
    button(page, "Remove").click()
    page.get_by_text("“A story” was removed.").wait_for()
    assert listed.all_inner_texts() == ["A second chat about giraffes"]
    button(page, "Undo").click()
    wait_until(lambda: page.locator(".chat-name").count() == 2)
    with page.expect_file_chooser() as chooser:
        button(page, "Import").click()
    chooser.value.set_files(path)
    wait_until(lambda: page.locator(".chat-name").count() == 3)
    page.get_by_role("heading", level=1, name="A story").wait_for()
    page.locator(".message.assistant").wait_for()
    assert texts(page) == shown and page.get_by_label("System prompt").input_value() == "Be kind."
    assert page.locator(".versions > span").text_content() == "2 / 2"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("no json", "is no JSON"),
        ('{"format": "other"}', "no conversation"),
        ('{"format": "octavo-conversation", "version": 1, "messages": [{"id": 0, "parent": 1}]}', "its message 1"),
        (
            json.dumps(
                {
                    "format": "octavo-conversation", "version": 1, "current": 0,
                    "messages": [{"id": 0, "parent": 0, "role": "user", "content": "a circle"}],
                }
            ),
            "its message 1",
        ),
    ],
)  # fmt: skip
def test_a_broken_history_is_refused(open_page, tmp_path, content, complaint):
    page = open_page()
    path = tmp_path / "broken.json"
    path.write_text(content)
    with page.expect_file_chooser() as chooser:
        button(page, "Import").click()
    chooser.value.set_files(path)
    page.get_by_text(complaint).wait_for()


def test_characters_from_cards_and_by_hand(open_page, tmp_path, server):
    page = open_page()
    set_preset(page, tokens=6)
    path = tmp_path / "ada.json"
    path.write_text(json.dumps({"name": "Ada", "description": "{{char}} counts.", "first_mes": "Hello {{user}}!"}))
    with page.expect_file_chooser() as chooser:
        button(page, "Import card").click()
    chooser.value.set_files(path)
    page.get_by_text("Hello User!").wait_for()
    assert page.get_by_label("System prompt").input_value() == "Ada counts."
    assert page.locator(".message h3").all_text_contents() == ["Ada"]
    assert "not part of the prompt" in statistics(page)[0]
    say(page, STORY)
    button(page, "Exact prompt").click()
    page.get_by_label("Prompt", exact=True).wait_for()
    shown = page.get_by_label("Prompt", exact=True).inner_text()
    assert shown.startswith(f"Ada counts. USER: {STORY} ASSISTANT:") and "Hello" not in shown
    button(page, "Close").click()
    button(page, "New chat").click()
    button(page, "Edit character").click()
    page.get_by_role("textbox", name="Name").fill("Bob")
    page.get_by_role("textbox", name="Context").fill("Bob builds.")
    page.get_by_label("Greeting").fill("Hi!")
    button(page, "Save").click()
    page.get_by_text("Hi!").wait_for()
    page.get_by_role("combobox", name="Character").select_option("Ada")
    page.get_by_text("Hello User!").wait_for()
    page.reload()
    page.get_by_text("Hello User!").wait_for()


def test_models_are_chosen_loaded_and_unloaded(open_page, server):
    page = open_page()
    page.locator("#model").click()
    row = page.locator('[data-model="bytes"]')
    assert "template: its own" in row.inner_text() and "512 tokens" in row.inner_text()
    assert "This server holds" in page.get_by_role("dialog").inner_text()
    row.get_by_role("button", name="Unload").click()
    page.locator('[data-model="bytes"][data-state="unloaded"]').wait_for()
    assert server.shelf.states()["bytes"] == "unloaded"
    row.get_by_role("button", name="Load").click()
    page.locator('[data-model="bytes"][data-state="ready"]').wait_for()
    assert server.shelf.states()["bytes"] == "ready"


def test_two_browsers_do_not_disturb_each_other(open_page):
    pages = [open_page(), open_page()]
    for page, name in zip(pages, ("slow", "stories"), strict=True):
        choose_model(page, name)
        set_preset(page, tokens=20)
    for page, text in zip(pages, ("Once upon a time", "The cat"), strict=True):
        page.get_by_label("Message", exact=True).fill(text)
        page.keyboard.press("Enter")
    for page in pages:
        settled(page)
    assert [texts(page)[0] for page in pages] == ["Once upon a time", "The cat"]
    assert all("20 tokens" in statistics(page)[-1] for page in pages)
    assert [page.locator(".chat-name").count() for page in pages] == [1, 1]


def test_a_server_that_is_gone_and_comes_back_costs_no_message(open_page, folders):
    alone = {"stories": folders["stories"]}
    with running(alone) as up:
        page = open_page(url=up.url)
        set_preset(page, tokens=6)
        say(page, STORY)
        before, port = texts(page), int(up.url.rsplit(":", 1)[1])
    page.get_by_label("Message", exact=True).fill("Are you there?")
    page.keyboard.press("Enter")
    page.get_by_text("The server does not answer").wait_for()
    assert texts(page) == [*before, "Are you there?"]
    with running(alone, listen_on=port):
        page.reload()
        page.locator(".message").nth(2).wait_for()
        assert texts(page) == [*before, "Are you there?"]
        button(page, "Answer again").last.click()
        settled(page)
        assert len(texts(page)) == 4


def test_a_key_is_asked_for_and_kept_for_the_session(open_page, folders):
    with running({"stories": folders["stories"]}, api_keys=("secret",)) as up:
        page = open_page(url=up.url)
        page.get_by_label("API key").fill("secret")
        button(page, "Save").click()
        page.locator('#model[data-state="ready"]').wait_for()
        page.reload()
        page.locator('#model[data-state="ready"]').wait_for()
        assert page.get_by_role("dialog").count() == 0


def test_who_may_not_unload_a_model_is_told_so(open_page, folders):
    with running({"stories": folders["stories"]}, admin_keys=("root",), api_keys=("secret",)) as up:
        page = open_page(url=up.url)
        page.get_by_label("API key").fill("secret")
        button(page, "Save").click()
        page.locator('#model[data-state="ready"]').wait_for()
        page.locator("#model").click()
        button(page, "Unload").click()
        refusal = page.get_by_role("dialog").get_by_text("needs a key of --admin-key")
        refusal.wait_for()
        page.get_by_role("dialog").get_by_role("radio").dispatch_event("change")  # draws the models anew
        refusal.wait_for()
