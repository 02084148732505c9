"""Pages, whatever characters a claim or a name has: read by a parser of Markdown and by one of HTML."""

import re
from html.parser import HTMLParser

import pytest
from markdown_it import MarkdownIt

from lm_trials.trials.page import Banner, Items, Table, Text, as_html, as_markdown, code

ODD = [
    "a claim", "<b>bold", "</h1><script>x</script>", "<!-- a", "<a@b.c>", "a | b", "a ` b", "`a` and `b", "``a",
    "`<b>|`", "a\nb", "a\n\n# b", "# a", "- a", "+ a", "1. a", "1) a", "> a", "---", "~~~", "*a* **b**", "a \\< b",
    "a \\", "&lt;b&gt;",
]  # fmt: skip
PARSER = MarkdownIt("commonmark").enable("table")


def plain(text):
    """What a reader sees of a text: on one line, without the backquotes of code."""
    return " ".join(re.sub(r"(?<!`)`([^`]+)`(?!`)", r"\1", text).split())


def shown(token):
    return "".join(child.content for child in token.children)


@pytest.mark.parametrize("odd", ODD)
def test_a_page_of_markdown_has_its_blocks_and_shows_each_text_as_it_is(odd):
    table = Table(["contrast", "run"], [[odd, code(odd)], ["b", "`c`"]], odd)
    page = PARSER.parse(as_markdown(odd, [Banner("holds", odd), Text(odd), Items([odd, "second"]), table]))
    kinds = [token.type for token in page if token.type.endswith("_open") and token.level == 0]
    expected = ("heading", "paragraph", "paragraph", "bullet_list", "table", "paragraph")
    assert kinds == [f"{kind}_open" for kind in expected]
    texts = [token for token in page if token.type == "inline"]
    assert {child.type for token in texts for child in token.children} <= {
        "text", "code_inline", "text_special", "strong_open", "strong_close",
    }  # fmt: skip
    contents = [plain(odd), f"Verdict: holds. {plain(odd)}", plain(odd), plain(odd), "second", "contrast", "run"]
    assert [shown(token) for token in texts] == [*contents, plain(odd), " ".join(odd.split()), "b", "c", plain(odd)]


class Texts(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("odd", ODD)
def test_a_page_of_html_has_the_same_elements_for_any_text(odd):
    def page(text):
        blocks = [Banner("holds", text), Text(text), Items([text]), Table([text], [[text]], text)]
        return Texts(as_html(text, blocks, {}))

    found = page(odd)
    assert [tag for tag in found.tags if tag != "code"] == page("a claim").tags
    assert " ".join(found.text.split()).count(plain(odd)) >= 7
