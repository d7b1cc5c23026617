"""What the page costs: requests, bytes, the time to be ready, and a long chat that stays quick."""

import json
import statistics

from page_testing import button
from serving import wait_until

MOST_REQUESTS, MOST_BYTES = 10, 200_000
MESSAGES = 500
PAINTED = "() => new Promise((done) => requestAnimationFrame(() => setTimeout(done)))"
SCROLL_UP = """(list, screens) => new Promise((done) => setTimeout(() => {
  list.scrollBy(0, -screens * list.clientHeight);
  requestAnimationFrame(() => setTimeout(done));
}))"""


def test_the_first_load_is_small(browser, server):
    context = browser.new_context()
    page, answers = context.new_page(), []
    page.on("response", lambda response: answers.append(response))  # noqa: PLW0108  playwright marks what it is given
    page.goto(server.url)
    page.locator('#model[data-state="ready"]').wait_for()
    page.wait_for_load_state("networkidle")
    assert len(answers) <= MOST_REQUESTS
    assert sum(len(answer.body()) for answer in answers) < MOST_BYTES
    assert all(answer.url.startswith(server.url) for answer in answers)
    assert all(answer.headers.get("cache-control") in ("no-cache", "no-store") for answer in answers)
    context.close()


def test_it_is_ready_within_a_second_of_work(browser, server):
    """The work of the page's thread, which a busy machine does not stretch as it does the time on the wall."""
    context = browser.new_context()
    page = context.new_page()
    client = context.new_cdp_session(page)
    client.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.goto(server.url)
    page.locator('#model[data-state="ready"]').wait_for()
    metrics = {metric["name"]: metric["value"] for metric in client.send("Performance.getMetrics")["metrics"]}
    assert metrics["TaskDuration"] < 1.0
    context.close()


def test_all_files_together_are_small(server):
    from octavo.server.page import FOLDER

    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < MOST_BYTES


def test_a_long_chat_is_typed_into_and_scrolled_without_lag(open_page, tmp_path):
    page = open_page()
    client = page.context.new_cdp_session(page)
    client.send("Performance.enable", {"timeDomain": "threadTicks"})

    def work() -> float:
        metrics = {metric["name"]: metric["value"] for metric in client.send("Performance.getMetrics")["metrics"]}
        return metrics["TaskDuration"] - metrics["DevToolsCommandDuration"]  # the page's, without this test's own

    path = tmp_path / "long.json"
    nodes = [
        {
            "id": place, "parent": place - 1 if place else None, "role": ("user", "assistant")[place % 2],
            "content": f"Message {place}. " + "It has **some** words, and `code`, as messages have. " * 8,
        }
        for place in range(MESSAGES)
    ]  # fmt: skip
    path.write_text(
        json.dumps(
            {"format": "octavo-conversation", "version": 1, "name": "long", "current": 499, "messages": nodes}
        )
    )
    with page.expect_file_chooser() as chooser:
        button(page, "Import").click()
    chooser.value.set_files(path)
    wait_until(lambda: page.locator(".message").count() == MESSAGES, seconds=60)
    page.get_by_text("Message 499.").wait_for()
    draft = page.get_by_label("Message", exact=True)
    messages = page.locator(".scroller")
    draft.click()
    page.wait_for_timeout(500)

    typed = []
    for letter in "typed into a long chat":
        before = work()
        page.keyboard.press("Space" if letter == " " else letter)
        page.evaluate(PAINTED)
        typed.append(work() - before)
    assert draft.input_value() == "typed into a long chat"
    assert statistics.mean(typed) < 0.05, "from the key to the picture, in seconds of the page's thread"

    def scroll(screens: float, times: int) -> tuple[float, float]:
        """The mean work of a scroll until it is painted, and of what follows: Markdown of what came near."""
        painted, rendered = [], []
        for _ in range(times):
            before = work()
            messages.evaluate(SCROLL_UP, screens)
            between = work()
            page.wait_for_timeout(100)
            painted.append(between - before)
            rendered.append(work() - between)
        return statistics.mean(painted), statistics.mean(rendered)

    painted, rendered = scroll(0.9, 40)  # as Page Up does
    assert painted < 0.05 and rendered < 0.05
    painted, _ = scroll(4, 10)  # as a scroll bar does that is dragged
    assert painted < 0.05
    assert messages.evaluate("(list) => -list.scrollTop / list.clientHeight") > 40
    assert page.locator(".body.rendered").count() > 40
