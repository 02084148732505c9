"""The bias probe from the command line: a planted pairing is found in all three measures, the unrelated one is not."""

import json

import pytest
import torch
from probe_runs import refused_by, row, table
from tiny_models import tiny_model

from lm_trials.probing.bias.contexts import read_pairing
from lm_trials.tokens.tokenizers import train_tokenizer
from probes import bias

PAIRING = {
    "groups": {"she": ["Ann", "Eve", "Sue", "Amy"], "he": ["Tom", "Bob", "Max", "Sam"]},
    "verbs": ["liked to", "loved to"],
    "elsewhere": ["had a"],
    "pairs": [["bake", "climb"], ["sing", "jump"]],
    "unrelated": [["read", "sleep"]],
    "openings": ["Here is a cat named {name}.", "A dog was called {name}.", "{name} was a fox."],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pairing, and a tiny model trained on texts that follow it; `unrelated` attributes are of both groups."""
    place = tmp_path_factory.mktemp("bias")
    (place / "pairing.json").write_text(json.dumps(PAIRING))
    pairing = read_pairing(str(place / "pairing.json"))
    texts = []
    for number, (pronoun, names) in enumerate(pairing.groups.items()):
        for name in names:
            for opening in pairing.openings:
                for attribute in (*(pair[number] for pair in pairing.pairs), *pairing.unrelated[0]):
                    lead = f"{opening.replace('{name}', name)} {pronoun.capitalize()}"
                    texts += [f"{lead} {verb} {attribute}." for verb in pairing.verbs]
    tokenizer = train_tokenizer(texts, 330)
    documents = tokenizer(texts)["input_ids"]
    model = tiny_model("llama", vocab_size=330, dropout=0.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(each) for each in documents], batch_first=True)
    labels = ids.masked_fill(ids == 0, -100)
    model.train()
    generator = torch.Generator().manual_seed(0)
    for _ in range(120):
        rows = torch.randperm(len(ids), generator=generator)[:32]
        model(input_ids=ids[rows], labels=labels[rows]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval().save_pretrained(place / "model")
    tokenizer.save_pretrained(place / "model")
    return place


def measured(folder, out, *more):
    words = ["--model_name_or_path", folder / "model", "--pairing", folder / "pairing.json", "--output_dir", out]
    sizes = ["--num_stories", 64, "--max_new_tokens", 16, "--num_contexts", 20, "--num_controls", 2, "--use_cpu"]
    return bias.main([str(word) for word in [*words, *sizes, *more]])


def test_a_planted_pairing_is_found_in_texts_probabilities_and_states_and_no_other(folder, tmp_path):
    rows = measured(folder, tmp_path)
    found = {
        (attribute, measure): row(
            rows,
            model="model",
            attribute=attribute,
            measure=measure,
            control=None if attribute == "paired" else "unrelated",
            layer="normed" if measure == "decoding" else None,
        )
        for attribute in ("paired", "unrelated")
        for measure in ("overt", "preference", "decoding", "overt, fits", "overt, opposite")
    }
    for measure, least in (("overt", 0.2), ("preference", 2.0), ("decoding", 2.0)):
        assert found["paired", measure]["lower"] > least, measure
    for measure, most in (("overt", 0.2), ("preference", 1.0)):
        assert abs(found["unrelated", measure]["estimate"]) < most, measure
    shares = [found["paired", f"overt, {name}"]["estimate"] for name in ("fits", "opposite")]
    assert found["paired", "overt"]["estimate"] == pytest.approx(shares[0] - shares[1])
    untrained = row(rows, attribute="paired", measure="preference", control="random weights")
    assert (untrained["n"], untrained["role"]) == (2, "control")

    written = table(tmp_path / "bias.csv")
    assert [float(line["estimate"]) for line in written] == [each["estimate"] for each in rows]
    assert all(line["lower"] < line["upper"] or float(line["lower"]) < float(line["upper"]) for line in written)
    stories = table(tmp_path / "stories.csv")
    assert len(stories) == 128
    about = json.loads((tmp_path / "bias.json").read_text())
    assert about["finding"] != about["control"]
    assert (tmp_path / "bias.png").is_file()


def test_the_same_command_measures_the_same_and_another_batch_size_too(folder, tmp_path):
    first, again, other = (
        measured(folder, tmp_path / name, *more)
        for name, more in (("a", ()), ("b", ("--per_device_eval_batch_size", 7)), ("c", ("--seed", 5)))
    )
    values = [[each["estimate"] for each in rows] for rows in (first, again, other)]
    assert values[1] == pytest.approx(values[0], abs=1e-4)
    assert values[2] != pytest.approx(values[0], abs=1e-2)


def test_mistakes_are_one_line(folder, tmp_path, capsys):
    model = ["--model_name_or_path", folder / "model"]
    assert "none.json" in refused_by(bias.main, capsys, *model, "--pairing", tmp_path / "none.json")
    assert "--num_contexts" in refused_by(bias.main, capsys, *model, "--num_contexts", 9)
    assert "twice" in refused_by(bias.main, capsys, *model, folder / "model")
