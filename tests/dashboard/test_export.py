"""The exported page in a real browser, opened as a file: all pages and pickers, without a network."""

import json

import pytest
from browser import CHROMIUM, Browser
from dashboard_runs import RESULTS

from lm_trials.dashboard import export as exported
from lm_trials.dashboard import tables
from lm_trials.dashboard.pages import PAGES, answer
from lm_trials.dashboard.tables import RunsFolder

STORY = "</script><script>fail()</script><!-- {{data}}"


@pytest.fixture(scope="module")
def page(trained, tmp_path_factory):
    """The page of the trained runs, with a story that tries to end its script."""
    read = tables.update_records

    def with_story(run, update):
        rows, whole = read(run, update)
        return [{**rows[0], "text": STORY}, *rows[1:]], whole

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "update_records", with_story)
        return exported.export(
            RunsFolder(trained / "runs", RESULTS), tmp_path_factory.mktemp("page") / "a" / "page.html"
        )


def content(page):
    text = page.read_text(encoding="utf-8")
    data = text[text.index('id="data">') + len('id="data">') :]
    return text, json.loads(data[: data.index("</script>")])


def leaf(data, name, chosen):
    """Return what a page shows for some choices; those that are not named are the first."""
    tree, chosen = next(page["tree"] for page in data["pages"] if page["name"] == name), list(chosen)
    while not isinstance(tree, int):
        tree = dict(tree)[chosen.pop(0)] if chosen else tree[0][1]
    return data["shown"][tree]


def test_it_has_what_the_app_shows(page, trained, view):
    _, data = content(page)
    looked = view(trained / "runs")
    for each in PAGES:
        _, chosen, shown = answer(looked, each)
        found = leaf(data, each.name, list(map(str, chosen)))
        assert found["head"] == shown.head, each.name
        assert found["figure"] == json.loads(shown.figure.to_json()), each.name
    attention = leaf(data, "Attention", ["tiny-s1", "update 2", "story 1", "layer 1, head 2"])
    assert "Layer 1, head 2 of tiny-s1, update 2" in attention["head"]
    assert [choice for choice, _ in dict(next(p for p in data["pages"] if p["name"] == "Data")["tree"])["tiny-s0"]] == [
        "1", "2", "4",
    ]  # fmt: skip


def test_it_loads_nothing_and_no_text_ends_its_script(page):
    text, data = content(page)
    assert "default-src 'none'" in text
    assert (
        text.count("<script") == 3 + text[text.index("<script>") : text.index('<script type="app')].count("<script") - 1
    )
    assert STORY not in text
    assert "&lt;/script&gt;" in json.dumps(leaf(data, "Data", ["tiny-s0", "1"])["foot"])


def test_few_choices_keep_the_default_and_the_last():
    assert exported.few("Checkpoint", [str(n) for n in range(50)]) == ["0", "9", "19", "29", "39", "49"]
    assert exported.few("Scale", ["a"] * 50) == ["a"] * 50
    assert exported.few("Update", range(1, 2)) == [1]


@pytest.fixture
def browser(page):
    """A narrow window with the page, opened as a file."""
    if CHROMIUM is None:
        pytest.skip("no Chromium; install Debian's package chromium")
    found = Browser(390, 844)
    found.open(page.as_uri())
    found.wait("document.querySelector('.main-svg') !== null")
    yield found
    found.close()


def open_page(browser, name):
    """Open a page with the keyboard."""
    browser.js(f"[...document.querySelectorAll('nav button')].find(e => e.textContent === '{name}').focus()")
    browser.key("Enter")
    browser.wait(f"document.querySelector('[aria-current]').textContent === '{name}'")


def test_it_opens_from_a_file_and_asks_for_nothing(browser):
    open_page(browser, "Data")
    assert STORY.replace("{{data}}", "") in browser.js("document.querySelector('#foot').textContent")
    browser.js("document.querySelectorAll('select')[1].focus()")
    browser.key("ArrowDown")
    assert browser.js("document.querySelector('h2').textContent").startswith("Update 2 of tiny-s0 read ")
    assert browser.js("document.activeElement.value") == "2"
    assert browser.js("document.documentElement.scrollWidth") <= 390
    assert browser.problems == []
    assert browser.hosts == {""}


@pytest.mark.slow
def test_every_page_and_picker_of_it_works(browser):
    for each in PAGES:
        open_page(browser, each.name)
        for place in range(browser.js("document.querySelectorAll('select').length")):
            select = f"document.querySelectorAll('select')[{place}]"
            browser.js(f"{select}.focus()")
            before, last = browser.js(f"[{select}.value, {select}.selectedIndex === {select}.length - 1]")
            browser.key("ArrowUp" if last else "ArrowDown")
            assert browser.js(f"{select}.value") != before, (each.name, place)
            assert browser.js(f"document.activeElement === {select}")
            assert browser.js("document.documentElement.scrollWidth") <= 390, each.name
        assert len(browser.js("document.querySelector('#head h2').textContent")) > 20
        drawn = "document.querySelector('#figure').hidden || document.querySelector('#figure .main-svg') !== null"
        assert browser.js(drawn), each.name
    assert browser.problems == []
    assert browser.hosts == {""}


def test_a_dark_page_and_a_heat_map_the_right_way_up(page):
    _, data = content(page)
    figure = leaf(data, "Attention", ["tiny-s0", "update 4"])["figure"]
    assert figure["layout"]["yaxis"]["autorange"] == "reversed"
    assert figure["layout"]["paper_bgcolor"] == "rgba(0,0,0,0)"
    revisions = [each["figure"]["layout"]["uirevision"] for each in data["shown"] if each["figure"]]
    assert len(set(revisions)) == len(revisions)  # the zoom of one figure is not kept for another
    assert len(revisions) > 50
