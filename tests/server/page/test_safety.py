"""Hostile text in every place where text can come from, and a page that talks to nobody but its server."""

import json

import pytest

from page_testing import button, say, set_preset, texts
from serving import wait_until

ATTACKS = [
    "<script>document.title='broken'</script>",
    "<img src=x onerror=\"document.title='broken'\">",
    "<svg onload=\"document.title='broken'\"><rect width='9' height='9'/></svg>",
    "<iframe src='https://example.com'></iframe>",
    "![a](https://example.com/leak.png)",
    "[click](javascript:document.title='broken')",
    "[click](data:text/html;base64,PHNjcmlwdD4=)",
    "<a href='https://example.com' onclick=\"document.title='broken'\">x</a>",
    "<style>body{display:none}</style>",
    "<form action='https://example.com'><button>go</button></form>",
    "<link rel=stylesheet href='https://example.com/a.css'><base href='https://example.com'>",
    "<video src='https://example.com/a.mp4' autoplay></video><object data='https://example.com'></object>",
    '"><details open ontoggle="document.title=\'broken\'">',
    "<math><mtext><table><mglyph><style><img src=x onerror=document.title='broken'>",
]
EVERYTHING = "\n\n".join(ATTACKS)


def imported(page, tmp_path, messages, name="a chat"):
    path = tmp_path / "chat.json"
    nodes = [
        {"id": place, "parent": place - 1 if place else None, "role": role, "content": content}
        for place, (role, content) in enumerate(messages)
    ]
    values = {
        "format": "octavo-conversation",
        "version": 1,
        "name": name,
        "current": len(nodes) - 1,
        "messages": nodes,
    }
    path.write_text(json.dumps(values))
    with page.expect_file_chooser() as chooser:
        button(page, "Import").click()
    chooser.value.set_files(path)
    wait_until(lambda: page.locator(".message").count() == len(messages))


def assert_inert(page):
    """Nothing ran, nothing of it became an element, and the page is still there."""
    page.wait_for_timeout(100)
    assert page.title() in ("Octavo", "Text · Octavo", "Compare · Octavo")
    found = "main :is(script, iframe, object, video, form[action], link, base, img, style)"
    assert page.locator(found).count() == 0
    hrefs = page.locator("main a").evaluate_all("links => links.map(link => link.protocol)")
    assert set(hrefs) <= {"http:", "https:"}
    assert page.locator("main [onclick], main [onerror], main [onload], main [ontoggle]").count() == 0
    assert page.locator("header").is_visible()


def test_messages_of_a_strangers_history(open_page, tmp_path):
    page = open_page()
    imported(page, tmp_path, [("user", EVERYTHING), ("assistant", EVERYTHING)], name=ATTACKS[1])
    page.locator(".message.assistant .body.rendered").wait_for()
    assert_inert(page)
    assert page.get_by_role("heading", level=1).inner_text() == ATTACKS[1]
    assert "[picture: a]" in texts(page)[1]
    button(page, "Exact prompt").click()
    assert_inert(page)


@pytest.mark.parametrize("start", range(0, len(ATTACKS), 5))
def test_what_a_model_writes(open_page, start):
    page = open_page()
    set_preset(page, tokens=4)
    page.get_by_label("Start reply with").fill(" ".join(ATTACKS[start : start + 5]))
    say(page, "Once upon a time")
    page.locator(".message.assistant .body.rendered").wait_for()
    assert_inert(page)


def test_names_and_cards(open_page, tmp_path):
    page = open_page()
    path = tmp_path / "card.json"
    path.write_text(json.dumps({"name": ATTACKS[0], "description": EVERYTHING, "first_mes": EVERYTHING}))
    with page.expect_file_chooser() as chooser:
        button(page, "Import card").click()
    chooser.value.set_files(path)
    page.locator(".message.assistant .body.rendered").wait_for()
    assert_inert(page)
    assert page.locator(".message h3").text_content() == ATTACKS[0]
    assert page.get_by_label("System prompt").input_value() == EVERYTHING


def test_texts_and_tokens(open_page):
    page = open_page("text")
    page.get_by_label("Text", exact=True).fill(ATTACKS[1])
    button(page, "Perplexity").click()
    wait_until(lambda: page.locator(".token").count() > 0)
    assert page.locator(".token-text").text_content() == ATTACKS[1]
    page.get_by_role("radio", name="Rendered").check(force=True)
    assert_inert(page)


def test_a_strangers_comparison(open_page, tmp_path):
    page = open_page("compare")
    score = {"logprob": -1.0, "likeliest": [[1, ATTACKS[1], -1.0]]}
    token = {
        "id": 1,
        "text": ATTACKS[0],
        "divergence": 0.5,
        "agrees": False,
        "seconds": [1, 1],
        "scores": [score, score],
    }
    models = [{"name": ATTACKS[1]}, {"name": ATTACKS[2]}]
    values = {
        "format": "octavo-comparison",
        "version": 1,
        "prompt": ATTACKS[0],
        "models": models,
        "tokens": [token],
    }
    path = tmp_path / "comparison.json"
    path.write_text(json.dumps(values))
    with page.expect_file_chooser() as chooser:
        button(page, "Open").click()
    chooser.value.set_files(path)
    page.locator(".token").click()
    assert ATTACKS[1].replace(" ", "␣") in page.locator(".beside").inner_text()
    assert_inert(page)


@pytest.mark.parametrize("path", ["/", "/assets/main.js", "/assets/page.css"])
def test_the_policy_stands_on_every_file(server, path):
    response = server.client.get(path)
    policy = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["img-src"] == "'self' data:" and policy["frame-ancestors"] == "'none'"
    assert "unsafe" not in str(policy) and policy["require-trusted-types-for"] == "'script'"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"
    again = server.client.get(path, headers={"if-none-match": response.headers["etag"]})
    assert again.status_code == 304 and again.content == b""


@pytest.mark.parametrize(
    "name", ["../page.py", "..%2fpage.py", "%2e%2e/page.py", "main.js/", "/etc/passwd", "x.js"]
)
def test_no_other_file_is_served(server, name):
    response = server.client.get(f"/assets/{name}")
    assert response.status_code == 404 and response.json()["error"]["code"] == "unknown_path"


def test_the_browser_itself_would_stop_what_got_through(open_page):
    page = open_page(complains=True)
    refused = "(act) => { try { act(); return 'made' } catch (error) { return error.name } }"
    for attempt in (
        "() => (document.body.innerHTML = '<b>x</b>')",
        "() => document.createElement('img').setAttribute('onerror', 'document.title=1')",
        "() => window.trustedTypes.createPolicy('other', {})",
    ):
        assert page.evaluate(f"() => ({refused})({attempt})") == "TypeError", attempt
    fetched = []
    page.on("requestfinished", lambda request: fetched.append(request.url))
    page.evaluate(
        """() => {
            const picture = document.createElement("img");
            picture.src = "https://example.com/x.png";
            document.querySelector("main").append(picture);
        }"""
    )
    assert page.evaluate("() => fetch('https://example.com').then(() => 'fetched', () => 'refused')") == "refused"
    assert not [url for url in fetched if "example.com" in url]
