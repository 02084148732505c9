"""The attention page and figures: what they show is what they were given, whatever the text holds."""

import base64
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_trials.files import write_file
from lm_trials.probing.attention.figures import head_figure, maps_figure, shown_token
from lm_trials.probing.attention.page import attention_page, packed, page_model

VOID = {"meta", "link", "input", "br", "img"}
EVIL = [
    "</script><img src=x onerror=alert(1)>",
    "</script x",
    "<!--<script ",
    "{{data}}",
    "&lt;",
    "\u2028",
    '"\\',
    "\ud83d",
    " day",
    "\n",
]


class Checked(HTMLParser):
    """Collects a page's elements and the text of its scripts, and sees that each is closed where it should."""

    def __init__(self, page):
        super().__init__()
        self.open, self.elements, self.scripts, self.texts = [], [], [], {}
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag == "script":
            self.scripts.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.texts[self.open[-1]] = self.texts.get(self.open[-1], "") + data
            if self.open[-1] == "script":
                self.scripts[-1] += data


def random_maps(layers, heads, length, seed=0):
    weights = np.tril(np.random.default_rng(seed).gamma(0.3, size=(layers, heads, length, length)) + 1e-6)
    return weights / weights.sum(axis=-1, keepdims=True)


def unpacked(text, layers, heads, length):
    """Undo the packing as the page's script does: a square for each byte, rows of the lower triangle."""
    raw = base64.b64decode(text)
    maps = np.zeros((layers, heads, length, length))
    size = length * (length + 1) // 2
    for layer, head, reader in np.ndindex(layers, heads, length):
        for key in range(reader + 1):
            byte = raw[(layer * heads + head) * size + reader * (reader + 1) // 2 + key]
            maps[layer, head, reader, key] = (byte / 255) ** 2
    assert len(raw) == layers * heads * size
    return maps


def page(tokens=("a", "b", "c"), models=1, layers=2, heads=3, title="a page", **more):
    maps = [random_maps(layers, heads, len(tokens), seed) for seed in range(models)]
    values = {"previous": [[0.123456, float("nan"), 1 / 3]] * (layers * heads)}
    made = [page_model(f"m{n}", "run", n, maps_LHTT, values) for n, maps_LHTT in enumerate(maps)]
    about = [
        {"key": "previous", "name": "previous-token mass", "unit": "share", "even": 0.1, "untrained": [0.1, 0, 0.2]}
    ]
    start = {"model": 0, "layer": 0, "head": 0, "statistic": "previous"}
    data = {"tokens": tokens, "layers": layers, "heads": heads, "models": made, "statistics": about, "start": start}
    return maps, attention_page(title, data | {"texts": "9 stories"}, **more)


def data_of(html):
    parsed = Checked(html)
    assert len(parsed.scripts) == 2
    return json.loads(parsed.scripts[0])


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 7), st.integers(0, 10**6))
def test_weights_come_back_within_a_255th(length, seed):
    maps = random_maps(2, 3, length, seed)
    back = unpacked(packed(maps), 2, 3, length)
    assert np.abs(back - maps).max() <= 1 / 255
    small = (maps > 0) & (maps < 0.01)
    assert (np.abs(back - maps)[small] <= 0.0004 + 1e-9).all()  # small ones keep two digits
    if length > 2:
        assert np.abs(unpacked(packed(random_maps(2, 3, length, seed + 1)), 2, 3, length) - maps).max() > 1 / 255


def test_the_page_holds_what_it_was_given():
    maps, html = page(models=3, lede="a lede", footer="a footer")
    data = data_of(html)
    assert (data["tokens"], data["layers"], data["heads"], data["texts"]) == (["a", "b", "c"], 2, 3, "9 stories")
    assert [(model["label"], model["run"], model["step"]) for model in data["models"]] == [
        (f"m{n}", "run", n) for n in range(3)
    ]
    for model, maps_LHTT in zip(data["models"], maps, strict=True):
        assert np.abs(unpacked(model["maps"], 2, 3, 3) - maps_LHTT).max() <= 1 / 255
        assert model["values"]["previous"][0] == [0.1235, None, 0.3333]  # no interval is null, which JSON has
    assert data["models"][0]["maps"] != data["models"][1]["maps"]
    parsed = Checked(html)
    assert parsed.texts["title"] == "a page"
    assert "a lede" in parsed.texts["p"]
    assert "a footer" in parsed.texts["p"]


def test_no_text_can_end_the_script_or_become_markup():
    _, plain = page(tokens=["a"] * len(EVIL))
    _, html = page(tokens=EVIL, title="</title><script>alert(1)</script>{{data}}")
    parsed = Checked(html)
    assert data_of(html)["tokens"] == EVIL
    assert [tag for tag, _ in parsed.elements] == [tag for tag, _ in Checked(plain).elements]
    assert parsed.texts["title"] == "</title><script>alert(1)</script>{{data}}"
    # A browser ends a script at `</script x` too, which this parser does not.
    assert not set("<>&") & set(parsed.scripts[0])
    html.encode("utf-8")  # half of a pair of UTF-16 is no text that could be written
    # The parser above is able to see it: the same data as plain JSON breaks out.
    raw = json.dumps(EVIL)
    broken = plain.replace(re.search(r'id="data">(.*?)</script>', plain)[1], raw)
    assert any(tag == "img" for tag, _ in Checked_loosely(broken).elements)


class Checked_loosely(Checked):
    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def close(self):
        super().close()
        self.open = []


def test_the_page_needs_nothing_but_itself():
    _, html = page()
    parsed = Checked(html)
    addresses = [
        value
        for _, attributes in parsed.elements
        for name, value in attributes.items()
        if name in ("src", "href", "action")
    ]
    assert addresses == ["data:,"]
    own = html.replace(parsed.scripts[0], "")  # the data is text: it may hold any letters
    loads = r"https?:|//[a-z]|@import|url\(|fetch\(|XMLHttp|WebSocket|innerHTML|eval\(|document\.write"
    assert not re.search(loads, own)
    policy = next(a["content"] for tag, a in parsed.elements if tag == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none';")
    assert all(
        "unsafe-inline" in part or part.strip() in ("default-src 'none'", "img-src data:") for part in policy.split(";")
    )


def test_the_page_is_used_with_the_keyboard_and_in_the_dark():
    _, html = page()
    parsed = Checked(html)
    script = parsed.scripts[1]
    for key in ("ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight", "Home", "End", "Enter", "Escape"):
        assert key in script
    assert len(re.findall(r'addEventListener\("keydown"', script)) == 2  # the grid of heads, the list of tokens
    assert "prefers-color-scheme: dark" in parsed.texts["style"]
    roles = {attributes.get("role") for _, attributes in parsed.elements}
    assert {"grid", "listbox"} <= roles
    assert any(a.get("aria-live") == "polite" for _, a in parsed.elements)
    # Each element that the script looks for is there.
    there = {attributes.get("id") for _, attributes in parsed.elements}
    assert set(re.findall(r'\$\("([a-z-]+)"\)', script)) <= there


def test_the_page_of_gpt2_small_stays_small():
    maps = random_maps(12, 12, 32)
    values = {name: [[0.1234, 0.1234, 0.1234]] * 144 for name in "abcdefg"}
    model = page_model("gpt2", "gpt2", None, maps, values)
    assert len(json.dumps(model)) < 150_000


def test_a_page_is_written_whole(tmp_path):
    path = tmp_path / "new" / "page.html"
    write_file(path, "<p>\N{OWL}</p>\n")
    assert path.read_text(encoding="utf-8") == "<p>\N{OWL}</p>\n"
    assert [file.name for file in path.parent.iterdir()] == ["page.html"]


@pytest.mark.parametrize(("length", "heads", "labelled"), [(5, 2, True), (40, 2, True), (41, 2, False), (5, 9, False)])
def test_small_maps_have_labels_where_they_fit(length, heads, labelled):
    maps = random_maps(2, heads, length)
    tokens = [f" t{place}" for place in range(length)]
    figure = maps_figure(maps, tokens, "a title")
    grid = figure.axes[: 2 * heads]
    for place, axes in enumerate(grid):
        shown = np.ma.filled(axes.images[0].get_array(), 0)
        np.testing.assert_allclose(shown, maps[place // heads, place % heads])
        assert np.ma.getmaskarray(axes.images[0].get_array())[0, 1:].all()  # what comes later is not drawn
    labels = [label.get_text() for label in grid[0].get_yticklabels()]
    assert labels == ([shown_token(token) for token in tokens] if labelled else [])
    below = [label.get_text() for label in grid[-1].get_xticklabels()]
    assert below == labels
    assert figure.axes[-1].get_ylabel() == "share of attention"


def test_a_large_map_has_labels_and_models_side_by_side(tmp_path):
    maps = {"a": random_maps(1, 1, 6)[0, 0], "b": random_maps(1, 1, 6, 1)[0, 0]}
    figure = head_figure(maps, ["<s>", "$x$", "\n", " a", "_", "^"], "one head")
    assert [axes.get_title() for axes in figure.axes[:2]] == ["a", "b"]
    assert [label.get_text() for label in figure.axes[1].get_xticklabels()][:4] == ["<s>", r"\$x\$", "⏎", "·a"]
    figure.savefig(tmp_path / "a.svg")  # a dollar or a caret would be a formula that fails


def test_a_label_is_what_can_be_printed():
    assert shown_token("\x07a") == "�a"
    assert shown_token("day") == "day"
