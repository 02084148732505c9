"""`probes/patching.py` from its command line: what is planted is told, a mistake is one line, nothing is converted."""

import csv
import json
import shlex
from functools import partial

import numpy as np
import pytest
import torch
from probe_runs import refused_by
from small_models import with_lora
from tiny_models import KINDS, TEXT, tiny_model, tiny_tokenizer
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import prepare_tinystories
from lm_trials.console import UsageError
from lm_trials.flags import parse_arguments
from lm_trials.probing import findings
from lm_trials.probing.flags import SubjectArguments, TextArguments
from lm_trials.probing.patching import probe
from lm_trials.probing.patching import sides as patching_sides
from lm_trials.probing.patching.flags import ARGUMENTS, PatchingArguments, check_arguments
from lm_trials.probing.patching.tasks import prompt_task, story_task
from lm_trials.probing.subjects import find_subjects
from probes import patching

refused = partial(refused_by, patching.main)

# PEFT 0.21 asks transformers 5.23 by a name that is to go, and says of GPT-2's layers that it does what is right.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to"),
]
ANIMALS = ["cat", "dog", "fox", "mat", "fun", "sun", "lazy", "brown"]
TWIST = "It turned out that the cat sat."
FAST = ["--components", "mlp", "--layers", "1", "--use_cpu", "True"]


@pytest.fixture(autouse=True)
def pictures(request, monkeypatch):
    """The names of the pictures: drawing them takes most of a run's time, so that one test alone has them drawn."""
    names = []

    def save(figure, stem):
        names.append(stem.name)
        assert figure.axes
        return right(figure, stem) if "two_models_on_stories[llama]" in request.node.name else []

    right = findings.save_pictures
    monkeypatch.setattr(findings, "save_pictures", save)
    return names


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two models of each kind and stories of some words, every second one with a twist."""
    place = tmp_path_factory.mktemp("patching")
    tokenizer = tiny_tokenizer()
    for kind in KINDS:
        for seed, name in ((1, "a"), (2, "b")):
            tiny_model(kind, vocab_size=330, seed=seed, positions=96).save_pretrained(place / f"{kind}-{name}")
            tokenizer.save_pretrained(place / f"{kind}-{name}")
    rng = np.random.default_rng(0)
    with (place / "stories.jsonl").open("w") as file:
        for number in range(10):
            story = (
                f"One day, a {' '.join(rng.choice(ANIMALS, size=4))}. {TWIST if number % 2 else 'The cat sat.'} Fun."
            )
            file.write(json.dumps({"text": f"Features: Twist\nStory: {story}"}) + "\n")
    return place


def run(folder, out, *more, kind="llama", models=("a", "b")):
    named = [word for name in models for word in ("--model_name_or_path", str(folder / f"{kind}-{name}"))]
    argv = [*named, "--dataset_name", str(folder / "stories.jsonl"), "--output_dir", str(out), "--use_cpu", "True"]
    rows = patching.main([*argv, *map(str, more)])
    return rows, json.loads((out / "patching.json").read_text())


@pytest.mark.parametrize("kind", KINDS)
def test_two_models_on_stories(folder, tmp_path, kind, capsys, pictures):
    more = ["--feature", "Twist", "--layers", "-1", "--heads", "0", "1"]
    rows, told = run(folder, tmp_path, *more, kind=kind)
    assert {row["measure"] for row in rows} == {"Twist sentence", "story"}
    assert {row["n"] for row in rows if row["measure"] == "Twist sentence" and row["texts"] == "all"} == {5}
    assert {row["n"] for row in rows if row["measure"] == "story" and row["texts"] == "all"} == {10}
    assert {row["direction"] for row in rows} == {f"{kind}-a into {kind}-b", f"{kind}-b into {kind}-a"}
    assert {row["block"] for row in rows} == {None, 1}
    with (tmp_path / "patching.csv").open() as file:
        written = list(csv.DictReader(file))
    assert len(written) == len(rows)
    assert {"model", "role", "seed", "estimate", "lower", "upper", "n", "unit"} <= written[0].keys()
    assert {row["role"] for row in written} == {"finding", "control"}
    assert pictures == ["patching", "patching-story"]
    for name in pictures if kind == "llama" else ():
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
        assert "block" in (tmp_path / f"{name}.svg").read_text()
    assert told["control"].startswith(
        "swapping each of 6 components with itself changes nothing, and swapping everything"
    )
    assert all(check["itself"] == 0 for check in told["swaps"].values())
    assert all(check["largest"] < 1e-5 for check in told["capture"].values())
    assert "changes" in " ".join(capsys.readouterr().out.split())
    values = {(r["measure"], r["direction"], r["run"]): r["estimate"] for r in rows if r["quantity"] == "value"}
    forward, backward = f"{kind}-a into {kind}-b", f"{kind}-b into {kind}-a"
    assert values["story", forward, "donor"] == values["story", backward, "recipient"]
    assert values["story", forward, "donor"] != values["story", forward, "recipient"]


def test_what_counts_is_the_story_and_the_sentence(folder):
    subject = find_subjects(SubjectArguments([str(folder / "llama-a")]))[0]
    text = f"Features: Twist\nStory: One day, a cat. {TWIST} The end."
    args = PatchingArguments(feature="Twist")
    task = story_task(subject, [{"story": text}, {"story": "A cat sat."}], args)
    decode = subject.tokenizer.decode
    counted = {
        measure: [decode(ids_T[counts_T]).strip() for ids_T, counts_T in zip(task.donor_ids, regions, strict=True)]
        for measure, regions in task.regions.items()
    }
    assert counted == {"Twist sentence": [TWIST, ""], "story": [f"One day, a cat. {TWIST} The end.", "A cat sat."]}
    for where, expected in (("prompt", "Features: Twist\nStory:"), ("story", f"One day, a cat. {TWIST} The end.")):
        task = story_task(subject, [{"story": text}], PatchingArguments(positions=where))
        assert decode(task.donor_ids[0][task.spots[0].donor_N[0]], skip_special_tokens=True).strip() == expected


def test_swapping_the_prompt_or_the_story_alone(folder, tmp_path):
    shares = {}
    for where in ("all", "prompt", "story", "0"):
        more = ["--components", "residual", "--layers", "0", "--direction", "forward", "--positions", where]
        rows, _ = run(folder, tmp_path / where, *more)
        shares[where] = [row["estimate"] for row in rows if row["quantity"] == "change" and row["run"] == "swap"]
        assert {row["position"] for row in rows if row["quantity"] == "change"} == {where}
    assert len({tuple(share) for share in shares.values()}) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_two_prompts_of_one_model(folder, tmp_path, kind):
    """The whole residual stream is the donor; recomputed without hooks; each position by itself."""
    asked = [
        "--prompt",
        "The quick cat",
        "--other_prompt",
        "The lazy cat",
        "--answer",
        " sat",
        "--other_answer",
        " dog",
    ]
    few = ["--components", "residual", "mlp", "--direction", "forward"]
    rows, told = run(folder, tmp_path / "all", *asked, "--positions", "all", *few, kind=kind, models=("a",))
    share = {(r["direction"], r["component"], r["block"], r["run"]): r["estimate"] for r in rows
             if r["quantity"] == "share of the gap" and r["measure"] == "answer difference"}  # fmt: skip
    for block in (0, 1):  # the stream at all positions is the donor's run from there on
        assert share["prompt into other prompt", "residual", block, "swap"] == pytest.approx(1, abs=1e-3)
    assert share["prompt into other prompt", "mlp", 0, "swap"] != pytest.approx(1, abs=1e-2)
    assert {(row["n"], row["lower"] == row["lower"]) for row in rows if row["quantity"] == "value"} == {(1, False)}
    assert "fewer than 10 texts give no interval" in told["finding"]
    values = {row["run"]: row["estimate"] for row in rows if row["quantity"] == "value"
              and row["direction"] == "prompt into other prompt" and row["measure"] == "answer difference"}  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(folder / f"{kind}-a")
    model = tiny_model(kind, vocab_size=330, seed=1, positions=96)
    (sat,), (dog,) = (tokenizer(word, add_special_tokens=False)["input_ids"] for word in ("sat", "dog"))
    for name, prompt in (("donor", "The quick cat"), ("recipient", "The lazy cat")):
        ids = [tokenizer.bos_token_id, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
        assert values[name] == pytest.approx(float(logits[sat] - logits[dog]), abs=1e-4)
    rows, told = run(folder, tmp_path / "each", *asked, "--positions", "each", *few, kind=kind, models=("a",))
    assert {row["position"] for row in rows if row["quantity"] == "change"} == {str(n) for n in range(len(ids))}
    before = [row["estimate"] for row in rows if row["quantity"] == "change" and row["position"] in ("0", "1")]
    assert set(before) == {0.0}  # where the prompts are alike
    assert "at position" in told["finding"]


def test_many_pairs_have_an_interval_and_two_models_one_prompt(folder, tmp_path, capsys):
    pairs = [
        {"prompt": f"The {a} cat", "other_prompt": f"The {b} dog is", "answer": " sat", "other_answer": " dog"}
        for a, b in (("quick", "lazy"), ("brown", "quick"), ("lazy", "brown"), ("quick", "brown")) * 3
    ]
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(pairs[0]))
        writer.writeheader()
        writer.writerows(pairs)
    rows, _ = run(folder, tmp_path / "out", "--pairs", tmp_path / "pairs.csv", *FAST, models=("a",))
    assert "continues the word" not in capsys.readouterr().err
    shares = [row for row in rows if row["quantity"] == "share of the gap" and row["run"] == "swap"]
    assert {row["position"] for row in shares} == {"last"}
    assert all(row["lower"] <= row["estimate"] <= row["upper"] and row["n"] == 12 for row in shares)
    (tmp_path / "one.jsonl").write_text(json.dumps({"prompt": "The quick cat", "answer": "sat"}) + "\n")
    rows, told = run(folder, tmp_path / "two", "--pairs", tmp_path / "one.jsonl", *FAST)
    assert "note: 'sat' continues the word 'cat'; for the next word give ' sat'" in capsys.readouterr().err
    assert {row["measure"] for row in rows} == {"answer", "answer probability"}
    assert told["swaps"]["llama-a into llama-b"]["whole"] == 0


def test_the_tokens_in_which_prompts_differ_are_swapped_and_an_instruction_precedes_its_story(folder, tmp_path):
    pair = {"prompt": "The lazy cat", "other_prompt": "The lazy dog", "story": "The fox", "answer": " sat"}
    many = [pair, pair | {"prompt": "A quick fox", "other_prompt": "A lazy fox", "story": ""}]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(one) + "\n" for one in many))
    subjects = find_subjects(SubjectArguments([str(folder / "llama-a")]))
    tokenizer = subjects[0].tokenizer
    args = PatchingArguments(pairs=str(tmp_path / "pairs.jsonl"), positions="different")
    task = prompt_task(subjects[0], args, several=False)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("The lazy cat", "The fox")]
    assert task.donor_ids[0].tolist() == [tokenizer.eos_token_id, *ids[0], tokenizer.bos_token_id, *ids[1]]
    assert task.donor_ids[1][0] == tokenizer.bos_token_id  # without a story: a text
    changed = [np.flatnonzero(a != b).tolist() for a, b in zip(task.donor_ids, task.recipient_ids, strict=True)]
    assert changed[0] != changed[1]
    assert task.spots[0].donor_N == task.spots[0].recipient_N == changed
    asked = ["--pairs", tmp_path / "pairs.jsonl", "--components", "embeddings", "residual", "--use_cpu", "True"]
    results = {
        where: run(folder, tmp_path / where, *asked, "--positions", where, models=("a",))
        for where in ("different", "last")
    }
    assert "final norm" not in results["different"][1]["finding"]  # nothing after the last block reads those tokens
    there, after = (
        {row["block"] if row["component"] == "residual" else "embeddings": row["estimate"] for row in rows
         if row["quantity"] == "share of the gap" and row["run"] == "swap" and row["measure"] == "answer"}
        for rows, _ in results.values()
    )  # fmt: skip
    # The prompts differ there alone, so their embeddings are the whole difference; and none of it at the last token.
    assert there["embeddings"] == pytest.approx(1, abs=1e-3)
    assert there[1] == 0  # after the last block nothing reads another token
    assert after["embeddings"] == 0
    assert after[1] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("bits", [(), ("--load_in_8bit", "True")])
def test_an_adapter_and_its_base_as_they_are(folder, tmp_path, bits):
    base = tiny_model("llama", vocab_size=330, seed=1, positions=96)
    base.config._name_or_path = base.name_or_path = str(folder / "llama-a")
    adapter = with_lora(base, "down_proj")
    adapter.peft_config["default"].base_model_name_or_path = str(folder / "llama-a")
    adapter.save_pretrained(folder / "llama-adapter")
    rows, told = run(folder, tmp_path, *bits, "--direction", "forward", models=("adapter", "a"))
    shares = {(row["component"], row["block"], row["head"]): row["estimate"] for row in rows
              if row["quantity"] == "change" and row["run"] == "swap"}  # fmt: skip
    assert shares["attention", 0, None] == 0  # below all that the adapter changes
    assert shares["mlp", 0, None] != 0
    assert all(check["itself"] == 0 for check in told["swaps"].values())
    gap = next(row["estimate"] for row in rows if row["quantity"] == "gap")
    residual = shares["residual", 1, None] / gap  # the norm and the head are the base's
    assert residual == pytest.approx(1, abs=1e-3)


@pytest.fixture(scope="module")
def writers(tiny_data, tmp_path_factory):
    """Two models that write one word again and again; they differ in their embeddings alone."""
    prepare_tinystories.main(
        ["protocol_set", "--corpus", "tiny", "--vocab_size", "400", "--data_cache_dir", str(tiny_data)]
    )
    tokenizer = AutoTokenizer.from_pretrained(tiny_data / "tok400")
    size = len(tokenizer)
    word, other = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("argued", "cat"))
    assert len(set(word)) == len(word)  # else the token before would not say which comes next
    assert not set(word) & set(other)
    place = tmp_path_factory.mktemp("writers")
    for name, chain in (("donor", word), ("recipient", other)):
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=size, hidden_size=size, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
                max_position_embeddings=512, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2,
            )
        )  # fmt: skip
        after = dict(zip(word, [*word[1:], word[0]], strict=True)) | dict(
            zip(other, [*other[1:], other[0]], strict=True)
        )
        with torch.no_grad():
            for block in model.model.layers:
                block.self_attn.o_proj.weight.zero_()
                block.mlp.down_proj.weight.zero_()
            model.lm_head.weight.zero_()
            model.model.embed_tokens.weight.zero_()
            for token in range(size):
                read = token if token in chain else chain[-1]
                model.model.embed_tokens.weight[token, read] = 1
            for token, following in after.items():
                model.lm_head.weight[following, token] = 1
        model.save_pretrained(place / name)
        tokenizer.save_pretrained(place / name)
    return place


def test_the_feature_score_of_what_is_written_follows_the_part_that_is_swapped(
    writers, tiny_data, tmp_path, capsys, pictures
):
    argv = ["--model_name_or_path", writers / "donor", writers / "recipient", "--data_cache_dir", tiny_data]
    argv += ["--dataset_name", "recovery-Twist", "--dataset_split", "train", "--max_eval_samples", 3]
    argv += ["--feature", "Conflict", "--num_generations", 3, "--max_new_tokens", 8, "--temperature", 0]
    argv += ["--components", "embeddings", "mlp", "--layers", 1, "--use_cpu", "True"]
    rows = patching.main([str(word) for word in [*argv, "--output_dir", tmp_path]])
    scores = {(row["direction"], row["component"], row["block"], row["run"]): row["estimate"] for row in rows
              if row["measure"] == "Conflict score"}  # fmt: skip
    forward, backward = "donor into recipient", "recipient into donor"
    for direction, plain, swapped in ((forward, 0, 1), (backward, 1, 0)):
        assert scores[direction, None, None, "recipient"] == plain
        assert scores[direction, "embeddings", None, "swap"] == swapped
        assert scores[direction, "mlp", 1, "swap"] == plain
        assert scores[direction, "embeddings", None, "untrained donor"] == 0
    wilson = next(row for row in rows if row["unit"] == "share of stories with Conflict")
    assert (wilson["n"], wilson["estimate"]) == (3, 0)
    assert wilson["upper"] > 0.4
    assert "untrained donor" in capsys.readouterr().out
    assert "patching-score" in pictures


def test_models_alike_have_no_gap(folder, tmp_path):
    tiny_model("llama", vocab_size=330, seed=1, positions=96).save_pretrained(folder / "llama-twin")
    tiny_tokenizer().save_pretrained(folder / "llama-twin")
    rows, told = run(folder, tmp_path, *FAST, models=("a", "twin"))
    assert "no gap to close" in told["finding"]
    assert "share of the gap" not in {row["quantity"] for row in rows}


ONE = ["--prompt", "The quick cat", "--other_prompt", "The lazy cat", "--answer", " sat"]


@pytest.mark.parametrize(
    ("models", "flags", "message"),
    [
        (["a"], [], "names one model and there is no --prompt: there is nothing to swap; name a second model"),
        (["a", "b", "twin"], [], "this probe takes 1 to 2"),
        (["a", "a"], [], "the same model twice"),
        (["a", "b"], ["--components", "mpl"], "--components mpl: did you mean mlp?"),
        (["a", "b"], ["--components", "mlp", "--heads", "0"], "--heads needs the component heads"),
        (["a", "b"], ["--feature", "Twits"], "--feature Twits: did you mean Twist?"),
        (
            ["a", "b"],
            ["--positions", "last"],
            "--positions last is not valid for stories; give all, prompt, story, or indices",
        ),
        (["a", "b"], ["--num_generations", "4"], "--num_generations 4 needs --feature"),
        (
            ["a", "b"],
            ["--feature", "Twist", "--num_generations", "4", "--positions", "0"],
            "--positions 0 cannot be combined",
        ),
        (["a", "b"], ["--answer", " sat"], "--answer ' sat' needs --prompt or --pairs"),
        (["a"], [*ONE, "--feature", "Twist"], "--feature Twist and --prompt cannot be combined"),
        (["a"], [*ONE, "--pairs", "pairs.csv"], "--pairs pairs.csv and --prompt cannot be combined"),
        (["a"], ONE[:4], "--answer is missing, so there is nothing to measure"),
        (["a"], [*ONE[:2], *ONE[4:]], "--other_prompt is missing and there is one model"),
        (["a", "b"], ONE, "with two models would change two things at once"),
        (
            ["a"],
            [*ONE[:2], "--other_prompt", ONE[1], *ONE[4:]],
            "--other_prompt equals --prompt, so there is nothing to swap",
        ),
        (["a"], [*ONE, "--other_answer", " sat"], "--other_answer equals --answer (' sat')"),
        (
            ["a"],
            [*ONE, "--positions", "prompt"],
            "--positions prompt is not valid for prompts; give all, last, each, different, or indices",
        ),
    ],
)
def test_what_means_nothing_is_refused_before_anything_is_loaded(tmp_path, models, flags, message):
    named = [word for name in models for word in ("--model_name_or_path", f"runs/{name}")]
    with pytest.raises(UsageError) as error:
        check_arguments(*parse_arguments([*named, *flags, "--output_dir", str(tmp_path / "out")], ARGUMENTS, ""))
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


def test_what_the_models_do_not_have_is_one_line(folder, tmp_path, capsys, monkeypatch):
    out = ["--output_dir", tmp_path / "out", "--use_cpu", "True"]
    both = ["--model_name_or_path", folder / "llama-a", folder / "llama-b", *out]
    stories = ["--dataset_name", folder / "stories.jsonl"]
    with monkeypatch.context() as patched:  # told by the configurations alone
        patched.delattr(patching_sides, "load_subject")
        assert "--layers 2: " in refused(capsys, *both, *stories, "--layers", 2)
        assert "has blocks 0 to 1" in refused(capsys, *both, *stories, "--layers", 5)
        assert "--heads 4: " in refused(capsys, *both, *stories, "--heads", 4)
    assert "position 90: the text has" in refused(capsys, *both, *stories, "--positions", 90)
    assert "no text shows it" in refused(capsys, *both, *stories, "--feature", "BadEnding")
    (tmp_path / "empty.jsonl").write_text('{"text": " "}\n')
    assert "holds no story; give a source" in refused(capsys, *both, "--dataset_name", tmp_path / "empty.jsonl")
    (tmp_path / "plain.jsonl").write_text(json.dumps({"text": TEXT}) + "\n")
    missing = refused(capsys, *both, "--dataset_name", tmp_path / "plain.jsonl", "--positions", "prompt")
    assert "a text has no instruction lines before its story" in missing
    score = [*both, *stories, "--feature", "Twist", "--num_generations", 2, "--data_cache_dir", tmp_path]
    assert "has no prompts" in refused(capsys, *score)
    one = ["--model_name_or_path", folder / "llama-a", *out]
    several = refused(capsys, *one, *ONE[:4], "--answer", " zoo")
    assert "answer ' zoo' is not one token after 'The quick cat' but " in several
    assert "('" in several
    assert "perhaps with the space before it (' zoo')" in refused(capsys, *one, *ONE[:4], "--answer", "zoo")
    longer = ["--prompt", "The quick cat", "--other_prompt", "The cat", "--answer", " sat"]
    assert "have 5 and 3 tokens" in refused(capsys, *one, *longer, "--positions", "all")
    assert "--pairs" in refused(capsys, *one, "--pairs", tmp_path / "gone.csv")
    (tmp_path / "bad.jsonl").write_text("[]\n")
    assert "has no pairs" in refused(capsys, *one, "--pairs", tmp_path / "bad.jsonl")
    rows = [{"prompt": p, "other_prompt": f"{p} is", "answer": " sat"} for p in ("The cat", "The quick cat")]
    (tmp_path / "uneven.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "the prompts of pair 1 have 3 and " in refused(
        capsys, *one, "--pairs", tmp_path / "uneven.jsonl", "--positions", "each"
    )
    same = [
        "--model_name_or_path",
        folder / "llama-a",
        folder / "llama-b",
        *out,
        "--prompt",
        "A cat",
        "--answer",
        " sat",
    ]
    assert "have the same tokens" in refused(capsys, *same, "--positions", "different")
    assert not (tmp_path / "out").exists()


def test_models_of_other_shapes_or_tokenizers_are_refused(folder, tmp_path, capsys):
    out = ["--output_dir", tmp_path / "out", "--dataset_name", folder / "stories.jsonl", "--use_cpu", "True"]
    wide = LlamaForCausalLM(
        LlamaConfig(vocab_size=330, hidden_size=32, intermediate_size=8, num_hidden_layers=2, num_attention_heads=4,
                    max_position_embeddings=96)
    )  # fmt: skip
    wide.save_pretrained(tmp_path / "wide")
    tiny_tokenizer().save_pretrained(tmp_path / "wide")
    names = ["--model_name_or_path", folder / "llama-a"]
    assert "has 16 dimensions and" in refused(capsys, *names, tmp_path / "wide", *out)
    deep = LlamaForCausalLM(
        LlamaConfig(vocab_size=330, hidden_size=16, intermediate_size=8, num_hidden_layers=3, num_attention_heads=4,
                    max_position_embeddings=96)
    )  # fmt: skip
    deep.save_pretrained(tmp_path / "deep")
    tiny_tokenizer().save_pretrained(tmp_path / "deep")
    assert "has 2 layers and" in refused(capsys, *names, tmp_path / "deep", *out)
    tiny_model("llama", vocab_size=330, positions=96).save_pretrained(tmp_path / "other")
    tiny_tokenizer(320).save_pretrained(tmp_path / "other")
    assert "different tokenizers" in refused(capsys, *names, tmp_path / "other", *out)


def test_the_documented_commands_parse():
    lines = (probe.__doc__ or "").replace("\\\n", " ").splitlines()
    commands = [shlex.split(line)[3:] for line in lines if line.strip().startswith("lm-trials probe patching ")]
    assert len(commands) >= 5
    for command in commands:
        parsed = parse_arguments(command, ARGUMENTS, "")
        check_arguments(*parsed)
        with pytest.raises(UsageError, match="unrecognized flag"):
            parse_arguments([*command, "--not_there"], ARGUMENTS, "")
    assert TextArguments().dataset_name == ""  # the data of the model's run
