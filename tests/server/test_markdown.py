"""Markdown of strangers: what it may become, and a dozen attacks that it may not."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.server.markdown import ATTRIBUTES, TAGS, rendered


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("a *b* **c** ~~d~~ `e`", "<p>a <em>b</em> <strong>c</strong> <s>d</s> <code>e</code></p>\n"),
        ("# A\n\n- b\n- c", "<h1>A</h1>\n<ul>\n<li>b</li>\n<li>c</li>\n</ul>\n"),
        ("3. x", '<ol start="3">\n<li>x</li>\n</ol>\n'),
        ("```python\nif a < b:\n```", '<pre><code class="language-python">if a &lt; b:\n</code></pre>\n'),
        (
            "[a](https://b.c)",
            '<p><a href="https://b.c" target="_blank" rel="noopener noreferrer nofollow">a</a></p>\n',
        ),
        ("![a plot](https://b.c/d.png)", "<p><em>[picture: a plot]</em></p>\n"),
        ("a\nb", "<p>a\nb</p>\n"),
        ("|a|b|\n|-|-:|\n|1|2|", None),
    ],
)
def test_what_markdown_becomes(text, html):
    assert rendered(text) == html if html else "<td>1</td>" in rendered(text)


ATTACKS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "![x](javascript:alert(1))",
    "[x](javascript:alert(1))",
    "[x](data:text/html,<script>alert(1)</script>)",
    "<svg onload=alert(1)>",
    "<iframe src='https://example.com'></iframe>",
    "<a href='java\tscript:alert(1)'>x</a>",
    "<style>body{display:none}</style>",
    "<form action='https://example.com'><input></form>",
    '[x](https://a.b "t\\"onmouseover=alert(1)")',
    "<details open ontoggle=alert(1)>",
    '```"><img src=x onerror=alert(1)>\nx\n```',
    "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=1 onerror=alert(1)&gt;'>",
    '![x" onerror="alert(1)](https://a.b/c.png)',
    "<base href='https://example.com'>",
]
TAG = re.compile(r"<\s*/?\s*([a-zA-Z][\w-]*)((?:\s+[\w-]+(?:=\"[^\"]*\")?)*)\s*/?>")


def tags_of(html):
    """Each tag with its attributes; every < that is not one of them is a mistake."""
    assert html.count("<") == len(TAG.findall(html)), html
    return [(name, dict(re.findall(r'([\w-]+)="([^"]*)"', attributes))) for name, attributes in TAG.findall(html)]


def assert_inert(html):
    for name, attributes in tags_of(html):
        assert name in TAGS
        assert set(attributes) <= ATTRIBUTES.get(name, set()) | ({"target", "rel"} if name == "a" else set()), html
        assert (
            attributes.get("href", "https:").startswith(("http:", "https:", "mailto:", "/", "#", "?"))
            or ":" not in attributes["href"]
        )


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_are_inert(attack):
    assert_inert(rendered(attack))
    assert_inert(rendered(f"a **b** {attack} c"))


@given(st.text(st.sampled_from("<>\"'`[]()!&;:/=\\ \n\tabjscripton#|-*_~"), max_size=80))
def test_nothing_else_gets_through(text):
    assert_inert(rendered(text))
