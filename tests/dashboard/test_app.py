"""The app in a real browser: pages, pickers, keyboard, a narrow window, and no request to another machine."""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser
from dashboard_runs import RESULTS, free_port

from lm_trials.dashboard.pages import PAGES

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium; install Debian's package chromium")
PANEL = "[...document.querySelectorAll('[role=tabpanel]')].find(each => each.offsetParent)"
NUMBER = f"({PANEL}).querySelector('input[type=number]')"


class Served:
    """The command in a process of its own, as people start it, and a browser."""

    def __init__(self, runs):
        self.port, self.name = free_port(), str(runs)
        words = ["dashboard", str(runs), "--results_dir", str(RESULTS), "--port", str(self.port)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen([sys.executable, "-m", "lm_trials.cli", *words], env=environment)
        self.host = f"127.0.0.1:{self.port}"
        self.browser = Browser()

    def wait(self):
        while True:
            try:
                return urllib.request.urlopen(f"http://{self.host}/").close()
            except OSError:
                assert self.process.poll() is None
                time.sleep(0.1)

    def open(self):
        self.wait()
        self.browser.open(f"http://{self.host}/")
        self.browser.wait("document.querySelector('.js-plotly-plot .main-svg') !== null")

    def close(self):
        self.browser.close()
        self.process.terminate()
        self.process.wait(60)

    def tab(self, name):
        """Open a tab; return the sentence of its page."""
        named = (
            f"[...document.querySelectorAll('button[role=tab]')].find(e => e.textContent.trim() === {json.dumps(name)})"
        )
        self.browser.js(f"{named}.click()")
        self.browser.wait(f"{named}.ariaSelected === 'true'")
        return "" if name == "Playground" else self.sentence(" ")

    def sentence(self, part):
        """Wait until the sentence of the open page contains a text; return the sentence."""
        found = f"({PANEL}?.querySelector('h2.sentence')?.textContent || '')"
        return self.browser.wait(f"{found}.includes({json.dumps(part)}) && {found}")

    def pickers(self):
        """Return the labels of the open page's pickers."""
        boxes = f"[...({PANEL}).querySelectorAll('input[role=combobox]')]"
        return self.browser.js(f"{boxes}.filter(each => each.offsetParent).map(each => each.ariaLabel)")

    def choose(self, label, option=None, within=PANEL):
        """Choose an option of a picker, by default the last, with the keyboard alone."""
        box = f"[...({within}).querySelectorAll('input[role=combobox]')].find(e => e.ariaLabel === {json.dumps(label)})"
        self.browser.js(f"{box}.focus()")
        options = "[...document.querySelectorAll('li[role=option]')]"
        offered = self.browser.wait(f"{options}.length && {options}.map(each => each.ariaLabel)")
        option = option or offered[-1]
        active = f"({options}.find(each => each.matches('.active'))?.ariaLabel ?? null)"
        for _ in range(len(offered) + 1):
            if (before := self.browser.js(active)) == option:
                break
            self.browser.key("ArrowDown")
            self.browser.wait(f"{active} !== {json.dumps(before)}")
        self.browser.key("Enter")
        if within == PANEL:
            self.browser.wait(f"{box}.value === {json.dumps(option)}")
        self.settle()

    def settle(self):
        """Wait until the page has asked for its next figure, and then until it has it."""
        time.sleep(0.5)
        self.browser.wait(
            "[...document.querySelectorAll('[data-testid=status-tracker]')].every(e => e.matches('.hide'))"
        )


@pytest.fixture
def served(runs):
    found = Served(runs)
    yield found
    found.close()


@needs_browser
def test_the_first_page_is_shown_and_a_picker_changes_it(served):
    served.open()
    assert served.browser.js("document.querySelector('h1').textContent") == f"{served.name}: 2 runs in 1 arm"
    served.sentence("The last validation loss is lowest in A  tiny-s*")
    served.choose("Curves of", "each run")
    served.sentence("The last validation loss is lowest in tiny-s")
    names = "[...document.querySelectorAll('.legendtext')].map(each => each.textContent)"
    assert served.browser.wait(f"{names}.length === 2 && {names}") == ["tiny-s0", "tiny-s1"]
    assert served.browser.problems == []
    assert served.browser.hosts == {served.host}
    listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines() if line.split()[3] == "0A"]
    assert [place for place in listening if place.endswith(f":{served.port:04X}")] == [f"0100007F:{served.port:04X}"]


@needs_browser
@pytest.mark.slow
def test_every_tab_and_picker(served):
    served.open()
    for page in PAGES:
        served.tab(page.name)
        for label in served.pickers():
            served.choose(label)
            served.sentence(" ")
        assert served.browser.wait(f"({PANEL}).querySelector('.main-svg, table') !== null"), page.name
    served.tab("Attention")
    served.choose("Run", "tiny-s1")
    served.choose("Checkpoint", "update 2")
    served.choose("Head", "layer 2, head 2")
    served.sentence("Layer 2, head 2 of tiny-s1, update 2")
    served.tab("Layers")
    served.choose("Shows", "all pairs of layers")
    served.choose("Checkpoint", "update 1")
    served.sentence("At update 1, the layers of")
    served.tab("Data")
    served.settle()
    served.browser.js(f"{NUMBER}.focus(), {NUMBER}.select()")
    served.browser.type("3")
    served.browser.key("Enter")
    served.sentence("Update 3 of")
    served.browser.js(f"{NUMBER}.focus(), {NUMBER}.select()")
    served.browser.type("9")
    served.browser.key("Enter")
    served.sentence("the run has updates 1 to 4")
    assert served.browser.problems == []
    assert served.browser.hosts == {served.host}


@needs_browser
@pytest.mark.slow
def test_arms_and_runs_are_chosen_for_all_pages(served):
    served.open()
    served.browser.js(
        "document.querySelector('input[aria-label=Runs]').closest('.wrap').querySelector('.token-remove').click()"
    )
    served.browser.wait(f"!({PANEL}).querySelector('h2.sentence').textContent.includes('[')")  # one run: no interval
    served.tab("Data")
    served.sentence("of tiny-s1 read")
    served.choose("Arms", "A  tiny-s*", within="document")
    served.tab("Runs")
    served.sentence("[")
    assert served.browser.problems == []


@needs_browser
@pytest.mark.slow
def test_the_playground_writes_what_generate_writes(served, runs):
    from lm_trials.evaluation.generate import main

    served.open()
    served.tab("Playground")
    served.choose("Right", "tiny-s1, update 0")  # four updates change no word of what a model writes
    served.browser.js(f"[...({PANEL}).querySelectorAll('button')].find(e => e.textContent.trim() === 'Write').focus()")
    served.browser.key("Enter")
    texts = f"[...({PANEL}).querySelectorAll('textarea')].slice(1).map(each => each.value)"
    left, right = served.browser.wait(f"{texts}.every(text => text.length) && {texts}")
    flags = ["--prompt", "One day, a girl named Lily", "--max_new_tokens", "100"]
    assert [left] == main(["--model_name_or_path", str(runs / "tiny-s0"), *flags])
    assert [right] == main(["--model_name_or_path", str(runs / "tiny-s1" / "checkpoint-0"), *flags])
    assert left != right
    for name in ("model.safetensors", "config.json"):
        (runs / "tiny-s1" / "checkpoint-4" / name).write_text("x")
    served.choose("Right", "tiny-s1, update 4")
    served.browser.key("Tab")
    served.browser.js(f"[...({PANEL}).querySelectorAll('button')].find(e => e.textContent.trim() === 'Write').click()")
    served.browser.wait(f"{texts}[1].includes('damaged') && {texts}")
    assert served.browser.problems == []


@needs_browser
@pytest.mark.slow
def test_a_run_that_trains_is_followed_without_a_reload(training, served):
    from torch.utils.tensorboard import SummaryWriter

    served.open()
    served.browser.wait("document.querySelector('h1').textContent.includes('3 runs in 2 arms, 1 not finished')")
    with SummaryWriter(training / "runs" / "later") as writer:
        writer.add_scalar("eval/loss", 0.125, 4)
    served.sentence("lowest in A  going-s0: 0.125 nats per token, update 4")
    shutil.copytree(training.parent / "tiny-s0", training.parent / "new-s0")
    served.browser.wait("document.querySelector('h1').textContent.includes('4 runs')")
    (training / "run.json").write_text("{")
    served.browser.wait("document.querySelector('.fault')?.textContent.includes('going-s0 is not shown')")
    assert served.browser.problems == []


@needs_browser
@pytest.mark.slow
def test_tabs_are_reached_with_the_keyboard(served):
    served.open()
    for _ in range(60):
        served.browser.key("Tab")
        if served.browser.js("document.activeElement.role === 'tab'"):
            break
    served.browser.key("Tab")  # Gradio's tabs are buttons in the order of the page
    served.browser.key("Enter")
    time.sleep(0.5)
    chosen = "document.querySelector('button[role=tab][aria-selected=true]').textContent.trim()"
    assert served.browser.js(chosen) == PAGES[1].name
    served.sentence("settles in tiny-s0")


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
def test_a_narrow_window_in_light_and_dark(served, dark):
    served.browser.resize(390, 844)
    served.browser.dark(dark)
    served.open()
    for name in (*(page.name for page in PAGES), "Playground"):
        served.tab(name)
        assert served.browser.js("document.documentElement.scrollWidth") <= 390, name
    served.tab("Runs")
    style = "getComputedStyle(document.querySelector('{}'))"
    color = served.browser.js(style.format(".xtick text") + ".fill")
    back = served.browser.js(style.format("body") + ".backgroundColor")
    assert (brightness(color) > brightness(back)) == dark
    assert abs(brightness(color) - brightness(back)) > 120
    assert served.browser.problems == []


def brightness(color):
    return sum(map(int, color[color.index("(") + 1 : -1].split(",")[:3])) / 3
