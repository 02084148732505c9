"""The app of the dashboard: the pages and a playground in Gradio, on this machine alone and without telemetry."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import lru_cache, partial
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported

import gradio as gr

from lm_trials.console import UsageError
from lm_trials.dashboard import tables
from lm_trials.dashboard.pages import PAGES, Page, View, answer
from lm_trials.dashboard.tables import Listing, RunsFolder

if TYPE_CHECKING:  # torch takes seconds to import
    from lm_trials.evaluation.storytellers import Storyteller

SECONDS = 5  # between two looks at the folder
FONTS = ("system-ui", "sans-serif")  # the system's: none is fetched
PROMPT = "One day, a girl named Lily"


def serve(folder: RunsFolder, host: str, port: int) -> gr.Blocks:
    """Serve the app of a folder in the background, and return it."""
    app = build(folder)
    style = files("lm_trials.dashboard").joinpath("style.css").read_text(encoding="utf-8")
    app.launch(
        server_name=host, server_port=port, prevent_thread_lock=True, quiet=True, share=False, run_history=False,
        enable_monitoring=False, ssr_mode=False, pwa=False, mcp_server=False, footer_links=[], css=style,
        theme=gr.themes.Default(primary_hue="blue", font=FONTS, font_mono=("ui-monospace", "monospace")),
    )  # fmt: skip
    return app


def build(folder: RunsFolder) -> gr.Blocks:
    """Return the app of a folder."""
    listing = folder.list()
    names = listing.first_shown()
    with gr.Blocks(title=f"lm_trials: {folder.folder}", analytics_enabled=False, fill_width=True) as app:
        head = gr.HTML(_head(folder, listing))
        with gr.Row():
            arms = gr.Dropdown(
                list(listing.arms), value=[], multiselect=True, label="Arms", info="select all their runs"
            )
            runs = gr.Dropdown(list(listing.runs), value=names, multiselect=True, label="Runs", scale=3)
        state, opened = gr.State(listing.state), gr.State(PAGES[0].name)
        with gr.Tabs(overflow_behavior="wrap"):
            for page in PAGES:
                with gr.Tab(page.name) as tab:
                    draw = partial(_draw, folder, page)
                    drawn = _page(page, draw(names, *[None] * len(page.pickers)) if page is PAGES[0] else None)
                    settings: dict[str, Any] = {"show_progress": "minimal", "trigger_mode": "always_last"}
                    looks = [tab.select, *(picker.input for picker in drawn[: len(page.pickers)])]
                    inputs = [runs, *drawn[: len(page.pickers)]]
                    gr.on(looks, draw, inputs, drawn, **settings)
                    gr.on([runs.change, state.change], draw, [*inputs, opened], drawn, **settings)
                    tab.select(partial(str, page.name), None, opened, show_progress="hidden")
            with gr.Tab("Playground"):
                _playground(folder, listing)
        arms.input(partial(_runs_of, folder), arms, runs)
        looks = [app.load, gr.Timer(SECONDS).tick]
        gr.on(looks, partial(_look, folder), state, [head, arms, runs, state], show_progress="hidden")
    return app


def _head(folder: RunsFolder, listing: Listing) -> str:
    training = sum(not run.finished for run in listing.runs.values())
    runs, arms = (
        f"{len(found)} {word}{'s' * (len(found) != 1)}"
        for found, word in ((listing.runs, "run"), (listing.arms, "arm"))
    )
    said = f"{runs} in {arms}" + (f", {training} not finished" if training else "")
    faults = "".join(f'<p class="fault">{escape(fault)}</p>' for fault in listing.faults)
    return f'<h1 class="sentence">{escape(str(folder.folder))}: {said}</h1>{faults}'


def _runs_of(folder: RunsFolder, arms: Iterable[str]) -> list[str]:
    listing = folder.list()
    return [name for arm in arms for name in listing.arms.get(arm, ())] or listing.first_shown()


def _look(folder: RunsFolder, state: int) -> list[Any]:
    """Follow the runs: new ones are offered, and another `state` lets the open page be drawn again."""
    listing = folder.list()
    if listing.state == state:
        return [gr.skip()] * 4
    offered = [gr.update(choices=list(names)) for names in (listing.arms, listing.runs)]
    return [_head(folder, listing), *offered, listing.state]


def _page(page: Page, first: Sequence[Any] | None) -> list[Any]:
    """Lay out a page, with `first` updates or empty; return its pickers, title, figure and what is below."""
    gr.HTML(f'<p class="note">{page.lede}</p>')
    *of_pickers, title, figure, foot = first or [*[{"visible": False}] * len(page.pickers), "", {"visible": False}, ""]
    kinds: list[Any] = [gr.Number if label == page.number else gr.Dropdown for label in page.pickers]
    with gr.Row():
        pickers = [
            kind(label=label, min_width=140, **({"precision": 0} if kind is gr.Number else {}), **_settings(update))
            for kind, label, update in zip(kinds, page.pickers, of_pickers, strict=True)
        ]
    return [*pickers, gr.HTML(title), gr.Plot(show_label=False, container=False, **_settings(figure)), gr.HTML(foot)]


def _settings(update: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in update.items() if name != "__type__"}


def _draw(folder: RunsFolder, page: Page, names: Sequence[str], *given: Any) -> list[Any]:
    """Return the updates of a page's components; none where the last of `given` names another page, the open one."""
    if len(given) > len(page.pickers) and given[-1] != page.name:
        return [gr.skip()] * (len(page.pickers) + 3)
    listing = folder.list()
    view = View(folder, listing, [name for name in names if name in listing.runs])
    offered, chosen, shown = answer(view, page, given[: len(page.pickers)])
    updates = [
        gr.update(value=value, visible=True) if isinstance(choices, range)
        else gr.update(choices=list(choices), value=value, visible=len(choices) > 1)
        for choices, value in zip(offered, chosen, strict=True)
    ]  # fmt: skip
    return [*updates, shown.head, gr.update(value=shown.figure, visible=shown.figure is not None), shown.foot]


def _playground(folder: RunsFolder, listing: Listing) -> None:
    gr.HTML('<p class="note">Two checkpoints continue the same beginning with the same random numbers.</p>')
    names = list(tables.checkpoints_of(listing)) or [""]
    with gr.Row():
        sides = [gr.Dropdown(names, value=names[place], label=label, min_width=240)
                 for label, place in (("Left", 0), ("Right", min(1, len(names) - 1)))]  # fmt: skip
    prompt = gr.Textbox(
        PROMPT, label="Beginning, or an instruction for a model that was trained on instructions", lines=2
    )
    with gr.Row():
        temperature = gr.Slider(0, 2, 0.7, step=0.1, label="Temperature (0: the likeliest token each time)")
        length = gr.Slider(1, 400, 100, step=1, label="New tokens at most")
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**32 - 1)
    button = gr.Button("Write", variant="primary")
    with gr.Row():
        texts = [gr.Textbox(label=label, lines=8, min_width=300) for label in ("Left", "Right")]
    for side, text in zip(sides, texts, strict=True):
        inputs = [side, prompt, temperature, length, seed]
        gr.on(
            [button.click, prompt.submit],
            partial(_write, folder),
            inputs,
            text,
            concurrency_limit=1,
            concurrency_id="models",
        )


def _write(folder: RunsFolder, name: str, prompt: str, temperature: float, length: int, seed: int) -> str:
    """Return what a checkpoint writes, or why it cannot."""
    places = tables.checkpoints_of(folder.list())
    if name not in places:
        return "No such checkpoint has weights any more; choose another one."
    from lm_trials.evaluation.sampling import Sampling

    try:
        teller = _teller(places[name])
        (ids,) = teller.prompts([prompt])
        room = min(teller.room([ids]), int(length))
        (written,) = teller.write([ids], ["story 0"], room, Sampling(temperature, seed=int(seed or 0)))
        return str(teller.tokenizer.decode([*teller.story_start(ids), *written]))
    except (UsageError, OSError) as error:
        return str(error)


@lru_cache(maxsize=2)
def _teller(place: Path) -> Storyteller:
    from lm_trials.evaluation.storytellers import open_storyteller

    return open_storyteller(str(place))
