"""Pages: what pickers offer, what is said, and a message instead of a traceback for what is missing or damaged."""

import re

import numpy as np
import pytest

from lm_trials.dashboard import tables
from lm_trials.dashboard.pages import PAGES, Page, Shown, answer, table_html
from lm_trials.snapshots import open_snapshots

PAGE = {page.name: page for page in PAGES}


def test_every_page_of_a_trained_run_shows_something(runs, view):
    looked = view(runs)
    for page in PAGES:
        offered, chosen, shown = answer(looked, page)
        assert len(offered) == len(chosen) == len(page.pickers)
        assert all(value in choices for value, choices in zip(chosen, offered, strict=True))
        assert shown.figure is not None, (page.name, shown.title)
        assert len(shown.figure.data) > 0, page.name
        assert any(axis.title.text for axis in shown.figure.select_xaxes()), page.name
        assert re.match(r"[A-Za-z].{20}", shown.title), page.name


def test_a_choice_is_kept_where_it_is_offered_and_else_the_first_is_taken(runs, view):
    looked = view(runs)
    _, chosen, shown = answer(looked, PAGE["Runs"], ["loss", "each run"])
    assert chosen == ["loss", "each run"]
    assert [trace.name for trace in shown.figure.data] == ["tiny-s0", "tiny-s1"]
    _, chosen, shown = answer(looked, PAGE["Runs"], ["gone", "each arm"])
    assert chosen == ["eval_loss", "each arm"]
    assert {trace.name for trace in shown.figure.data} == {"A  tiny-s*"}


def test_the_sentence_of_the_runs_names_the_lowest_loss(runs, view):
    looked = view(runs)
    ends = {name: tables.curve(tables.log_of(run), "loss")[-1]["estimate"] for name, run in looked.listing.runs.items()}
    best = min(ends, key=ends.get)
    shown = answer(looked, PAGE["Runs"], ["loss", "each run"])[2]
    assert shown.title == f"The last training loss is lowest in {best}: {ends[best]:.4g} nats per token, update 4"
    assert "33,440" in shown.foot
    assert "4 of 4" in shown.foot


def test_a_run_that_trains_is_shown_with_its_updates(training, runs, view):
    shown = answer(view(runs, "going-s0"), PAGE["Runs"])[2]
    assert "3 of 4" in shown.foot
    assert "not finished" in shown.foot
    assert shown.title.startswith("The last validation loss is lowest in going-s0: 2.5")


def test_attention_is_that_of_the_chosen_head(runs, view):
    given = ["tiny-s1", "update 2", "story 2", "layer 2, head 1"]
    offered, chosen, shown = answer(view(runs), PAGE["Attention"], given)
    assert chosen == given
    assert len(offered[3]) == 4
    weights_TT = open_snapshots(runs / "tiny-s1").attention(1)[2][1, 0]
    assert (shown.figure.data[0].z == np.rint(255 * np.sqrt(weights_TT))).all()
    assert f"{weights_TT[1:, 0].mean():.0%} of the attention goes to the first token" in shown.title


def test_the_page_of_the_attention_probe_is_in_a_frame(runs, view):
    place = runs / "tiny-s0" / "probes" / "attention" / "attention.html"
    place.parent.mkdir()
    place.write_text('<p title="a">"&lt;s&gt;"</p>')
    offered, chosen, shown = answer(
        view(runs), PAGE["Attention"], ["tiny-s0", "probes/attention/attention.html", "", ""]
    )
    assert offered[1][0] == "update 4"
    assert chosen[2:] == ["all", "all"]
    assert 'srcdoc="&lt;p title=&quot;a&quot;&gt;&quot;&amp;lt;s&amp;gt;&quot;&lt;/p&gt;"' in shown.foot


def test_layers_of_two_runs_and_of_all_pairs(runs, view):
    looked, page = view(runs), PAGE["Layers"]
    shown = answer(looked, page, ["tiny-s0", "tiny-s1", "same layers, over the updates", "all"])[2]
    assert [trace.name for trace in shown.figure.data] == ["embeddings", "layer 1", "layer 2"]
    assert len(shown.figure.data[0].x) == 4
    offered, _, shown = answer(looked, page, ["tiny-s0", "its own last checkpoint", "all pairs of layers", "update 4"])
    assert offered[3] == ["update 4", "update 2", "update 1", "update 0"]
    assert np.diag(shown.figure.data[0].z) == pytest.approx(1)


def test_which_stories_were_in_an_update(runs, view):
    offered, chosen, shown = answer(view(runs), PAGE["Data"], ["tiny-s0", 3, "words"])
    assert offered[1] == range(1, 5)
    assert chosen == ["tiny-s0", 3, "words"]
    rows, whole = tables.update_records(view(runs).run("tiny-s0"), 3)
    assert all(row["record"] in shown.foot for row in rows)
    assert f"of all training records {whole['words'].mean():.4g}" in shown.title
    for wrong, why in ((0, "updates 1 to 4"), (5, "updates 1 to 4"), (2.5, "2.5 is not a whole number")):
        assert why in answer(view(runs), PAGE["Data"], ["tiny-s0", wrong, "words"])[2].title


def test_data_without_metrics_or_at_another_place(runs, view, trained, monkeypatch):
    tables.metric_values.cache_clear()
    monkeypatch.setattr(tables, "metric_values", lambda run: {})
    _, chosen, shown = answer(view(runs), PAGE["Data"])
    assert chosen[2] == "no metrics"
    assert "make them with: lm-trials prepare metadata" in shown.note


def test_a_table_with_one_estimate_for_a_step_is_drawn(runs, view):
    page = PAGE["Tables"]
    offered, _, shown = answer(view(runs), page, ["tiny-s0", "probes/saturation/checkpoints.csv"])
    assert list(view(runs).names) == ["tiny-s0", "tiny-s1"]
    assert offered[0] == ["tiny-s0"]
    assert [trace.name for trace in shown.figure.data if trace.fill is None] == ["input", "output"]
    assert shown.figure.layout.yaxis.title.text == "words"
    assert answer(view(runs), page, ["tiny-s0", "probes/saturation/saturation.csv"])[2].figure is None


def test_trials_with_and_without_a_verdict(runs, view):
    shown = answer(view(runs), PAGE["Trials"], ["diversity"])[2]
    assert '<p class="verdict yes"><b>holds</b>' in shown.head
    assert shown.title.startswith("Half PubMed")
    assert "held-out PubMed (control)" in " ".join(note.text for note in shown.figure.layout.annotations)


@pytest.mark.parametrize(
    ("page", "damage", "message"),
    [
        ("Attention", "checkpoint-4/snapshot/attention.safetensors", "is damaged: snapshot/attention.safetensors"),
        ("Embeddings", "checkpoint-4/snapshot/embeddings.safetensors", "is damaged: snapshot/embeddings.safetensors"),
        ("Layers", "checkpoint-4/snapshot/texts.json", "is damaged: snapshot/texts.json"),
        ("Input and output", "probes/saturation/checkpoints.csv", "checkpoints.csv cannot be read"),
        ("Tables", "probes/saturation/checkpoints.csv", "checkpoints.csv cannot be read"),
        ("Runs", "trainer_state.json", "trainer_state.json cannot be read as JSON"),
    ],
)
def test_a_damaged_file_is_the_sentence_of_its_page(runs, view, page, damage, message):
    looked = view(runs)
    (runs / "tiny-s0" / damage).write_text('"')
    for cached in (tables.attention, tables.embeddings, tables._features, tables._snapshots):
        cached.cache_clear()
    shown = answer(looked, PAGE[page])[2]
    assert message in shown.title
    assert shown.figure is None


def test_a_table_without_its_columns_is_a_sentence_too(runs, view):
    (runs / "tiny-s0" / "probes" / "saturation" / "saturation.csv").write_text("a,b\n1,2\n")
    shown = answer(view(runs), PAGE["Input and output"])[2]
    assert re.match(r"A file of this page has unexpected content \(KeyError\('slice'\)\); restore it", shown.title)


@pytest.mark.parametrize("page", [page.name for page in PAGES if page.name not in ("Runs", "Data", "Trials")])
def test_what_a_run_does_not_have_is_said_with_the_command_that_makes_it(training, runs, view, page):
    offered, chosen, shown = answer(view(runs, "going-s0"), PAGE[page])
    assert re.search(r"None of the chosen runs has this\. .*lm-trials (train|probe|evaluate)", shown.title)
    assert len(offered) == len(chosen) == len(PAGE[page].pickers)
    assert set(chosen) == {None}
    assert answer(view(runs, "tiny-s0"), PAGE[page])[2].figure is not None


def test_no_run_chosen(runs, view):
    looked = view(runs)
    looked = type(looked)(looked.folder, looked.listing, [])
    for page in PAGES:
        shown = answer(looked, page)[2]
        assert shown.figure is None or page.name == "Trials"
        assert re.match("No run is chosen|None of the chosen runs", shown.title) or page.name == "Trials", shown.title


def test_tables_are_escaped_and_cut():
    assert "<td>&lt;script&gt;</td>" in table_html([{"a": "<script>"}])
    assert table_html([]) == ""
    found = table_html([{"n": number} for number in range(5)], most=3)
    assert found.count("<tr>") == 4
    assert "The first 3 of 5 rows." in found
    assert "<td></td>" in table_html([{"a": None}])


def test_a_page_without_choices_says_why():
    page = Page(
        "x", "", ("a", "b"), lambda view, *chosen: ["1"] if not chosen else range(1, 3), lambda *_: Shown("done")
    )
    assert answer(None, page)[:2] == ([["1"], range(1, 3)], ["1", 1])
    assert answer(None, page, ["2", 7])[1] == ["1", 7]  # a number is refused by what is drawn
