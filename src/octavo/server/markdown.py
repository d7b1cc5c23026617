"""Markdown to HTML that a page may show, whoever wrote it: rendered without raw HTML, then sanitised."""

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

TAGS = frozenset(
    {
        "a", "blockquote", "br", "code", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre",
        "s", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul",
    }
)  # fmt: skip
ATTRIBUTES = {"a": {"href", "title"}, "ol": {"start"}, "code": {"class"}, "th": {"align"}, "td": {"align"}}
SCHEMES = frozenset({"http", "https", "mailto"})


def rendered(text: str) -> str:
    """CommonMark with tables and strikethrough, as HTML of TAGS only.

    A picture becomes its description: to fetch it would tell its host of the conversation. Links open in a tab of
    their own, which learns nothing of this one.
    """
    import nh3

    return nh3.clean(
        _renderer().render(text),
        tags=set(TAGS),
        attributes={tag: set(names) for tag, names in ATTRIBUTES.items()},
        url_schemes=set(SCHEMES),
        link_rel="noopener noreferrer nofollow",
        set_tag_attribute_values={"a": {"target": "_blank"}},
    )


@cache
def _renderer() -> "MarkdownIt":
    from markdown_it import MarkdownIt
    from markdown_it.common.utils import escapeHtml

    renderer = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])

    def described(renderer_self, tokens, index, options, env):  # type: ignore[no-untyped-def]
        return f"<em>[picture: {escapeHtml(tokens[index].content)}]</em>"

    renderer.add_render_rule("image", described)
    return renderer
