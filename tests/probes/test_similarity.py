"""`probes/similarity.py` from its command line: planted findings are told, false ones not, mistakes in one line."""

import csv
import json
from functools import partial

import numpy as np
import pytest
import torch
from probe_runs import refused_by
from small_models import with_lora
from tiny_models import tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from lm_trials.console import UsageError
from lm_trials.probing.similarity.figures import cka_figure, rank_figure, similarity_figure
from lm_trials.probing.similarity.flags import ARGUMENTS, SimilarityArguments, check_arguments, templates, words
from lm_trials.tokens.tokenizers import train_tokenizer
from probes import similarity

refused = partial(refused_by, similarity.main)

# PEFT 0.21 asks transformers 5.23 by a name that is to go, and says of GPT-2's layers that it does what is right.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to"),
]
WORDS = 24


@pytest.fixture(scope="module")
def vocabulary():
    """Made-up words of one token each: the term, the true one, queries, candidates."""
    letters = np.random.default_rng(0).permuted(np.tile(list("bdfgklmnprst"), (60, 1)), axis=1)
    return list(dict.fromkeys(f"{a}o{b}a{c}" for a, b, c in letters[:, :3]))


@pytest.fixture(scope="module")
def base(vocabulary, tmp_path_factory):
    """A Llama of random weights, with a tokenizer that has each of the words as one token."""
    folder = tmp_path_factory.mktemp("models") / "base"
    tokenizer = train_tokenizer([f"the {word} and the {word} saw" for word in vocabulary] * 5, vocab_size=600)
    assert all(len(tokenizer(word, add_special_tokens=False)["input_ids"]) == 1 for word in vocabulary)
    tiny_model("llama", vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def stories(vocabulary, tmp_path_factory):
    """A file of 60 stories of 5 to 15 of the words."""
    rng = np.random.default_rng(1)
    path = tmp_path_factory.mktemp("stories") / "stories.jsonl"
    texts = [" ".join(rng.choice(vocabulary, size=rng.integers(5, 15))) for _ in range(60)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture(scope="module")
def flags(vocabulary):
    """The flags of a comparison of single tokens, ten queries (fewer have no interval) and 24 candidates."""
    term, true, *rest = vocabulary
    return [
        "--term_a", term, "--term_b", true, "--template", "the {city} and the {term} saw", "--query", *rest[:10],
        "--candidates", *rest[10 : 10 + WORDS], "--prompt_layout", "completion", "--use_cpu", "True",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def planted(base, vocabulary, tmp_path_factory):
    """Return a model of the base's with some words' embeddings moved: by name, to where, and how far."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    ids = {word: tokenizer.convert_tokens_to_ids(f"▁{word}") for word in vocabulary}

    def make(name, goals, share=1.0):
        folder = tmp_path_factory.mktemp("planted") / name
        model = AutoModelForCausalLM.from_pretrained(base)
        with torch.no_grad():
            weight = model.get_input_embeddings().weight
            goal = torch.stack([weight[ids[word]] for word in goals]).mean(dim=0)
            weight[ids[vocabulary[0]]] = (1 - share) * weight[ids[vocabulary[0]]] + share * goal
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="module")
def towards_the_true_one(planted, vocabulary):
    return planted("true", vocabulary[1:2])


@pytest.fixture(scope="module")
def towards_all(planted, vocabulary):
    """A false finding: the term became more like the true one, and as much like every other word."""
    return planted("all", vocabulary[1:], share=0.9)


def run(tmp_path, *argv):
    rows = similarity.main([*map(str, argv), "--output_dir", str(tmp_path)])
    return rows, json.loads((tmp_path / "similarity.json").read_text())


def test_a_planted_finding_is_told_with_its_tables_and_figures(
    tmp_path, base, towards_the_true_one, towards_all, flags, vocabulary, capsys
):
    models = ["--model_name_or_path", base, towards_the_true_one, "--control_model", towards_all]
    rows, told = run(tmp_path, *models, *flags)
    term, true = vocabulary[:2]
    assert told["finding"].startswith(
        f'true: "{term}" came significantly nearer to "{true}" than to the average of {WORDS} other candidates'
    )
    assert "all minus" not in told["control"]
    assert "as expected of a control" in told["control"]
    assert "chance is rank 13 of 25" in told["control"]
    at_0 = {
        (row["model"], row["measure"], row["role"]): row["estimate"]
        for row in rows
        if (row["site"], row["layer"]) == ("hidden", 0) and row["measure"] in ("similarity", "rank")
    }
    assert at_0["true", "similarity", "finding"] == pytest.approx(1.0, abs=1e-6)
    assert at_0["true", "rank", "finding"] == 1.0
    assert at_0["base", "similarity", "finding"] < 0.9
    assert {row["role"] for row in rows if row["model"] == "all"} == {"control"}
    shown = " ".join(capsys.readouterr().out.split())
    assert "embeddings were trained" in shown
    assert f"{term} ▁{term} (position 5)" in shown
    assert "capturing hidden, normed, values changes no log-probability" in shown
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "similarity.csv", "similarity.json", "similarity.png", "similarity.svg", "similarity_rank.png",
        "similarity_rank.svg", "similarity_candidates.csv", "similarity_tokens.csv",
    }  # fmt: skip
    with (tmp_path / "similarity.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(rows)
    assert {"model", "role", "estimate", "lower", "upper", "n", "unit", "seed"} <= table[0].keys()
    with (tmp_path / "similarity_candidates.csv").open() as file:
        first = next(row for row in csv.DictReader(file) if row["model"] == "true")
    assert (first["candidate"], first["rank"], first["of"]) == (true, "1", "25")
    assert (first["estimate"], first["unit"], first["n"]) == (
        str(at_0["true", "similarity", "finding"]),
        "cosine similarity",
        "10",
    )
    with (tmp_path / "similarity_tokens.csv").open() as file:
        assert [row["tokens"] for row in csv.DictReader(file)][:2] == [f"▁{term}", f"▁{true}"]


def test_a_term_that_came_nearer_to_all_words_is_no_finding(tmp_path, base, towards_all, flags):
    rows, told = run(tmp_path, "--model_name_or_path", base, towards_all, *flags)
    gains = [row["estimate"] for row in rows if row["measure"] == "gain" and row["site"] == "hidden"]
    assert max(gains) > 0.1  # what the published notebook would have shown
    assert told["finding"].startswith("all: ")
    assert "did not come significantly nearer" in told["finding"]
    assert "than to the average of 24 other candidates: by" in told["finding"]


def test_what_the_control_shows_too_is_no_finding(tmp_path, base, planted, towards_the_true_one, flags, vocabulary):
    again = planted("again", vocabulary[1:2])
    models = ["--model_name_or_path", base, towards_the_true_one, "--control_model", again]
    _, told = run(tmp_path, *models, *flags)
    assert told["finding"].startswith("true: ")
    assert "but not significantly more than in the control again: by" in told["finding"]
    assert "the control shows it too, in its hidden states" in told["control"]


@pytest.mark.parametrize("bits", [(), ("--load_in_8bit", "True")])
def test_an_adapter_is_held_against_its_base_as_it_is(tmp_path, base, flags, bits, capsys):
    adapter = tmp_path / "adapter"
    with_lora(AutoModelForCausalLM.from_pretrained(base), "q_proj", "v_proj").save_pretrained(adapter)
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    rows, told = run(tmp_path / "out", "--model_name_or_path", adapter, *flags, *bits)
    assert list(told["models"]) == ["base", "adapter"]
    assert told["models"]["base"] == str(base)
    assert "layer 0 equal in all models" in " ".join(capsys.readouterr().out.split())
    apart = [abs(row["estimate"]) for row in rows if row["measure"] == "gain" and row["layer"] == 2]
    assert max(apart) > 1e-3  # the adapter was in it
    if not bits:
        assert {row["estimate"] for row in rows if row["measure"] == "gain" and row["site"] == "hidden"} > {0.0}


@pytest.mark.slow
def test_a_gpt2_alone_and_words_of_its_vocabulary(tmp_path, base, vocabulary):
    tokenizer = AutoTokenizer.from_pretrained(base)
    folder = tmp_path / "gpt2"
    tiny_model("gpt2", vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    asked = ["--term_a", vocabulary[0], "--term_b", vocabulary[1], "--template", "the {term} saw", "--use_cpu", "True"]
    rows, told = run(tmp_path / "out", "--model_name_or_path", folder, *asked, "--vocabulary_sample", "20")
    assert told["finding"].startswith("gpt2: ")
    assert "is not significantly nearer" in told["finding"]
    assert "[no interval]" in told["finding"]  # of one prompt there is none
    assert {row["against"] for row in rows} == {vocabulary[1], "words of the vocabulary"}
    assert {row["n"] for row in rows} == {1}
    assert not [row for row in rows if row["measure"].startswith("gain")]


def test_cka_of_base_and_trained_beside_its_controls(tmp_path, base, towards_the_true_one, stories):
    asked = ["--measure", "cka", "--dataset_name", stories, "--use_cpu", "True"]
    rows, told = run(tmp_path, "--model_name_or_path", base, towards_the_true_one, *asked)
    diagonal = {
        (row["model"], row["minus"], row["layer"]): row for row in rows if row["layer"] == row["layer_of_other"]
    }
    assert len(rows) == 2 * 9 + 3
    for layer in range(3):
        near, mixed = diagonal["true", "base", layer], diagonal["true", "base, stories mixed up", layer]
        assert near["estimate"] > 0.9
        assert near["role"] == "finding"
        assert near["n"] == 60
        assert abs(mixed["estimate"]) < 0.25
        assert mixed["role"] == diagonal["untrained", "base", layer]["role"] == "control"
        assert diagonal["untrained", "base", layer]["upper"] < near["lower"]
    assert "more similar to base than an untrained model in 3 of 3 layers" in told["finding"]
    assert sorted(told["capture"]) == ["base", "true", "untrained"]
    assert (tmp_path / "similarity_cka.svg").is_file()
    # The same again, from the last tokens: another number, the same stories.
    asked += ["--model_name_or_path", base, towards_the_true_one, "--cka_pooling", "last"]
    last, _ = run(tmp_path / "last", *asked)
    assert last[4]["estimate"] != rows[4]["estimate"]
    short, told = run(tmp_path / "short", *asked, "--block_size", "4")
    assert short[4]["estimate"] != last[4]["estimate"]
    assert told["capture"]["base"]["tokens"] == 4


@pytest.mark.slow
def test_both_measures_go_into_one_table(tmp_path, base, towards_the_true_one, stories, flags):
    more = ["--measure", "both", "--dataset_name", stories]
    models = ["--model_name_or_path", base, towards_the_true_one]
    rows, told = run(tmp_path, *models, *flags, *more, "--max_eval_samples", "10")
    assert {row["measure"] for row in rows} == {"similarity", "rank", "gain", "gain over others", "CKA"}
    assert "came significantly nearer to" in told["finding"]
    assert "the lowest CKA is in layer" in told["finding"]
    assert told["arguments"]["max_eval_samples"] == 10
    assert told["arguments"]["model_name_or_path"] == list(map(str, models[1:]))


def test_models_that_cannot_be_set_side_by_side_are_refused(tmp_path, base, flags, capsys):
    tokenizer = AutoTokenizer.from_pretrained(base)
    from transformers import LlamaConfig, LlamaForCausalLM

    deep = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=3,
                    num_attention_heads=2, max_position_embeddings=64)
    )  # fmt: skip
    deep.save_pretrained(tmp_path / "deep")
    tokenizer.save_pretrained(tmp_path / "deep")
    models = ["--model_name_or_path", base, tmp_path / "deep", "--output_dir", tmp_path / "out"]
    assert "has 2 layers and" in refused(capsys, *models, *flags)
    tiny_model("gpt2", vocab_size=330).save_pretrained(tmp_path / "other")
    from tiny_models import tiny_tokenizer

    tiny_tokenizer().save_pretrained(tmp_path / "other")
    models[2] = tmp_path / "other"
    assert "have different tokenizers" in refused(capsys, *models, *flags)
    assert "name its base before it" in refused(
        capsys, "--model_name_or_path", tmp_path / "other", "--measure", "cka", "--output_dir", tmp_path / "out"
    )
    alone = ["--model_name_or_path", base, "--output_dir", tmp_path / "out"]
    asked = [*flags, "--prompt_layout", "chat"]
    assert "has no chat template and so no chat mode; use instruct" in refused(capsys, *alone, *asked)
    assert not (tmp_path / "out").exists()


def test_an_empty_data_set_is_refused(tmp_path, base, towards_the_true_one, capsys):
    (tmp_path / "empty.jsonl").write_text('{"text": " "}\n')
    models = ["--model_name_or_path", base, towards_the_true_one, "--measure", "cka"]
    argv = [*models, "--dataset_name", tmp_path / "empty.jsonl", "--output_dir", tmp_path / "out"]
    assert "holds no story; give a source with at least one" in refused(capsys, *argv)
    (tmp_path / "few.jsonl").write_text("".join(f'{{"text": "Cat {n}."}}\n' for n in range(3)))
    argv[argv.index("--dataset_name") + 1] = tmp_path / "few.jsonl"
    assert "3 stories are too few for CKA; give at least 8" in refused(capsys, *argv)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((), "--model_name_or_path is missing"),
        (("--template", "How far is {city}?"), "has neither {term} nor foo; write"),
        (("--template", "How far is food?"), "has neither {term} nor foo"),
        (("--template", "Is foo foo?"), "has the term 2 times; write {term} once"),
        (("--template", "Is {term} in {x}?"), "has {x}; the fields are"),
        (("--template", "Is foo in?", "Is {term} in?"), "is given twice"),
        (("--template", "{city} {term}", "{term}"), "--template: only some have {city}"),
        (("--term_a", "Paris"), "--term_a and --term_b are both Paris"),
        (("--true", " "), "--term_b must not be empty"),
        (("--num_queries", "0"), "--num_queries 0 must be"),
        (("--vocabulary_sample", "5"), "--vocabulary_sample 5 must be"),
        (("--query", "nowhere.txt"), "--query nowhere.txt cannot be read (No such file or directory)"),
        (("--control_model", "a"), "--control_model a is also in --model_name_or_path"),
        (("--dataset_name", "tiny"), "--dataset_name tiny is used by CKA only"),
        (("--measure", "cka", "--max_eval_samples", "0"), "--max_eval_samples 0 must be"),
        (("--align", "middle"), "invalid choice: 'middle'"),
    ],
)
def test_a_mistake_is_told_in_one_line(argv, message, tmp_path, capsys):
    models = ("--model_name_or_path", "a") if argv else ()
    assert message in refused(capsys, *models, *argv, "--output_dir", tmp_path)


def test_words_come_from_a_file_or_the_command_line(tmp_path):
    (tmp_path / "cities").write_text("Rome\n\n  Oslo\nRome\n", encoding="utf-8")
    assert words([str(tmp_path / "cities")], "--query") == ["Rome", "Oslo"]
    assert words([], "--query") == []
    (tmp_path / "none.txt").write_text("\n")
    with pytest.raises(UsageError, match=r"--query .*none.txt contains no words"):
        words([str(tmp_path / "none.txt")], "--query")
    assert templates(SimilarityArguments(template=["Is foo in {city}?"])) == ["Is {term} in {city}?"]
    assert len(ARGUMENTS) == 3
    assert callable(check_arguments)


def row(model, site, layer, **more):
    return {
        "model": model,
        "site": site,
        "layer": layer,
        "estimate": 0.5,
        "lower": 0.4,
        "upper": 0.6,
        "unit": "u",
        **more,
    }


def test_figures_draw_what_the_table_has():
    rows = [row(m, s, n) for m in ("a", "b") for s, n in (("hidden", 0), ("hidden", 1), ("normed", 1), ("values", 0))]
    bands = [{**one, "low": 0.1, "high": 0.3} for one in rows]
    figure = similarity_figure([*rows, *bands], "a title")
    hidden, values = figure.axes
    # Of each model a line and the dashed mean of the others; the normed one is a mark apart.
    assert [len(line.get_xdata()) for line in hidden.lines] == [2, 2, 2, 2, 1, 1]
    assert [label.get_text() for label in hidden.get_xticklabels()][-1] == "after the\nfinal norm"
    assert hidden.lines[-1].get_xdata()[0] > 1.2
    assert [line.get_linestyle() for line in values.lines] == ["--", "-", "--", "-"]
    ranked = rank_figure([{**one, "estimate": 4.0} for one in rows], "ranks", 13.0)
    low, high = ranked.axes[0].get_ylim()
    assert low > 13 > 1 > high
    with pytest.raises(ValueError, match="no rows"):
        similarity_figure([], "a title")
    pairs = [row("a", "hidden", j, layer_of_other=i, minus="b") for i in (0, 1) for j in (0, 1)]
    pairs[0]["estimate"] = None
    figure = cka_figure(pairs, "a title")
    assert len(figure.axes[0].texts) == 3
    with pytest.raises(ValueError, match="no rows"):
        cka_figure([], "a title")


def test_candidates_that_leave_none_beside_the_true_term_are_refused(
    tmp_path, base, towards_the_true_one, flags, vocabulary, capsys
):
    start = flags.index("--candidates") + 1
    alone = [*flags[:start], vocabulary[1], *flags[start + WORDS :]]
    models = ["--model_name_or_path", base, towards_the_true_one, "--output_dir", tmp_path / "out"]
    assert "0 other candidates are too few for p = 0.05; give 19" in refused(capsys, *models, *alone)
    assert not (tmp_path / "out").exists()
