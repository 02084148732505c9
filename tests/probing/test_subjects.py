"""Models as probes find and load them, without conversion: runs, checkpoints, revisions, adapters and 8-bit bases."""

import json
import shutil

import numpy as np
import pytest
import torch
from refusals import usage_error as refused
from small_models import with_lora
from tiny_models import KINDS, tiny_model, tiny_tokenizer
from transformers import BertConfig, BertForMaskedLM, BertModel

from lm_trials.console import UsageError
from lm_trials.flags import check_flags
from lm_trials.probing.activation_store import captured
from lm_trials.probing.anatomy import anatomy_of
from lm_trials.probing.capture import SITES, Capture, check_capture
from lm_trials.probing.flags import SubjectArguments, TextArguments, check_subjects, probe_folder, short_names
from lm_trials.probing.subjects import check_alike, find_subjects, load_subject, read_stories, untrained
from lm_trials.tokens.tokenizers import train_tokenizer

IDS = torch.tensor([[3, 17, 5, 9, 30, 4]])
WITHOUT_ATTENTION = [site for site in SITES if site != "attention"]
# PEFT 0.21 asks transformers 5.23 by a name that is to go, and says of GPT-2's layers that it does what is right.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to"),
]


def found(*names, **flags):
    return find_subjects(SubjectArguments(model_name_or_path=list(map(str, names)), use_cpu=True, **flags))


def loaded(name, **flags):
    args = SubjectArguments(model_name_or_path=[str(name)], use_cpu=True, **flags)
    return load_subject(find_subjects(args)[0], args)


@torch.no_grad()
def logits(model):
    return model(IDS).logits


@torch.no_grad()
def read(model, sites=WITHOUT_ATTENTION):
    with Capture(model, sites) as capture:
        capture.logits = model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
    return capture


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def bases(tmp_path_factory, tokenizer):
    """By kind, a model folder with its tokenizer."""
    folder = tmp_path_factory.mktemp("bases")
    for kind in KINDS:
        tiny_model(kind, vocab_size=330).save_pretrained(folder / kind)
        tokenizer.save_pretrained(folder / kind)
    return folder


@pytest.fixture(scope="module")
def adapters(bases):
    """By kind, an adapter on it, with what PEFT usually targets: GPT-2's c_attn among them."""
    for kind, targets in {"gpt2": ("c_attn", "c_fc"), "llama": ("q_proj", "v_proj", "down_proj")}.items():
        model = loaded(bases / kind)
        model.name_or_path = str(bases / kind)
        with_lora(model, *targets).save_pretrained(bases / f"{kind}-lora")
    return bases


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_is_read_unmerged_and_says_what_it_says(kind, adapters):
    """P8: a reader of LoRA on `c_attn` that gives the base's logits, and changes the model, is what must not be."""
    model, base = loaded(adapters / f"{kind}-lora"), loaded(adapters / kind)
    before = logits(model)
    capture = read(model)
    assert torch.equal(capture.logits, before)
    assert (capture.logits - logits(base)).abs().max() > 0.05
    assert torch.equal(logits(model), before)
    assert any(type(module).__module__.startswith("peft.tuners.lora") for module in model.modules())  # unmerged

    found, of_base = capture.activations, read(base).activations
    with torch.no_grad():
        depth = anatomy_of(model).num_blocks
        torch.testing.assert_close(anatomy_of(model).head(found.of("normed", depth)), before[0])
        for block in range(depth):
            added = found.of("attention_output", block) + found.of("mlp", block)
            torch.testing.assert_close(found.of("hidden", block) + added, found.of("hidden", block + 1))
            projected = anatomy_of(model).projection(block)(found.of("heads", block))
            torch.testing.assert_close(projected, found.of("attention_output", block))
    assert torch.equal(found.of("hidden", 0), of_base.of("hidden", 0))
    for site in ("values", "mlp", "heads"):
        assert (found.of(site, 0) - of_base.of(site, 0)).abs().max() > 1e-3
    assert check_capture(model, IDS[0], WITHOUT_ATTENTION).largest == 0
    assert check_capture(model, IDS[0], ["attention"]).largest < 1e-4
    assert model.base_model.model.config._attn_implementation == "sdpa"

    merged = read(model.merge_and_unload())
    torch.testing.assert_close(merged.logits, before, rtol=1e-4, atol=1e-4)
    for site, layer in found.values:
        torch.testing.assert_close(merged.activations.of(site, layer), found.of(site, layer), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_an_8_bit_base_is_read_as_it_is_with_and_without_an_adapter(kind, adapters):
    dense = read(loaded(adapters / kind)).activations
    for name in (kind, f"{kind}-lora"):
        model = loaded(adapters / name, load_in_8bit=True)
        assert any("Linear8bitLt" in type(module).__name__ for module in model.modules())
        before = logits(model)
        capture = read(model)
        assert torch.equal(capture.logits, before)
        assert check_capture(model, IDS[0], WITHOUT_ATTENTION).largest == 0
        assert check_capture(model, IDS[0], ["attention"]).largest < 0.3
        assert capture.activations.of("values", 1).dtype == torch.float32
        apart = (capture.activations.of("hidden", 1) - dense.of("hidden", 1)).abs().max()
        assert 0 < apart < (0.3 if name == kind else 10)
    assert (
        logits(loaded(adapters / kind, load_in_8bit=True)) - before
    ).abs().max() > 0.05  # the adapter's, not the base's


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_read_in_float32(kind, bases):
    model = loaded(bases / kind, dtype="bfloat16")
    assert model.dtype == torch.bfloat16
    capture = read(model)
    assert torch.equal(capture.logits, logits(model))
    values = capture.activations.of("hidden", 1)
    assert values.dtype == torch.float32
    assert torch.equal(values, values.to(torch.bfloat16).float())  # nothing was added to its digits
    assert check_capture(model, IDS[0], [*WITHOUT_ATTENTION, "attention"]).largest < 0.3
    dense = read(loaded(bases / kind)).activations.of("hidden", 1)
    assert 0 < (values - dense).abs().max() < 0.1
    assert not torch.equal(dense, dense.to(torch.bfloat16).float())


def test_a_run_and_its_checkpoints_know_their_steps(tiny_base, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for path in tiny_base.iterdir():
        if path.is_file():
            shutil.copy(path, run)
    for step in (10, 5):
        shutil.copytree(run, run / f"checkpoint-{step}", ignore=lambda *_: ["checkpoint-10", "run.json"])
    (subject,) = found(run)
    assert (subject.label, subject.step, subject.depth, subject.window) == ("run", 30, 2, 256)
    assert subject.candidate.seed is not None
    flags = SubjectArguments(model_name_or_path=[str(run)], use_cpu=True)
    steps = find_subjects(flags, all_checkpoints=True, block_size=16)
    assert [subject.label for subject in steps] == ["checkpoint-5", "checkpoint-10", "run"]
    assert [subject.step for subject in steps] == [5, 10, 30]
    assert [subject.window for subject in steps] == [16, 16, 16]
    assert torch.equal(logits(load_subject(steps[1], flags)), logits(loaded(run)))
    assert "N folder; remove the flag" in refused(find_subjects, SubjectArguments([str(tiny_base)]), True)
    assert "N folder; it is no folder here" in refused(find_subjects, SubjectArguments(["runs/nowhere"]), True)


def test_stories_begin_as_in_training_and_end_at_the_window(tiny_base):
    args = SubjectArguments(model_name_or_path=[str(tiny_base)], use_cpu=True)
    (subject,) = find_subjects(args, block_size=8)
    short, long = subject.story_ids(["A cat.", "One day, a cat sat on a mat. " * 9])
    assert len(long) == 8 > len(short)
    assert short[: len(subject.opening())].tolist() == subject.opening() == [subject.tokenizer.bos_token_id]
    assert subject.tokenizer.decode(short[1:]) == "A cat."
    (batch,) = captured(load_subject(subject, args), [short, long], description=None)
    assert batch.lengths_B.tolist() == [8, len(short)]


def test_a_revision_of_the_hub_is_read_from_the_cache(bases, tmp_path, monkeypatch, tokenizer):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    cache = tmp_path / "models--owner--tiny"
    (cache / "refs").mkdir(parents=True)
    for revision, seed in {"main": 0, "step10": 1}.items():
        commit = f"{seed:040d}"
        tiny_model("llama", vocab_size=330, seed=seed).save_pretrained(cache / "snapshots" / commit)
        tokenizer.save_pretrained(cache / "snapshots" / commit)
        (cache / "refs" / revision).write_text(commit)
    newest, earlier = found("owner/tiny", "owner/tiny@step10")
    assert [newest.label, earlier.label] == ["tiny", "tiny@step10"]
    args = SubjectArguments(use_cpu=True)
    by_revision = [read(load_subject(subject, args)) for subject in (newest, earlier)]
    assert torch.equal(by_revision[0].logits, logits(loaded(bases / "llama")))
    assert (by_revision[0].logits - by_revision[1].logits).abs().max() > 0.1
    assert torch.equal(by_revision[1].logits, logits(tiny_model("llama", vocab_size=330, seed=1)))
    assert "owner/tiny@step99" in refused(found, "owner/tiny@step99")
    assert probe_folder(SubjectArguments(["owner/tiny@step10"]), "lens").as_posix() == "out/probes/lens"


def test_an_untrained_model_has_the_shape_and_other_weights(adapters):
    for name in ("gpt2-lora", "llama"):
        (subject,) = found(adapters / name)
        trained, args = loaded(adapters / name), SubjectArguments(use_cpu=True)
        state = torch.random.get_rng_state()
        first, again, other = (untrained(subject, args, seed) for seed in (5, 5, 6))
        assert torch.equal(torch.random.get_rng_state(), state)
        assert torch.equal(logits(first), logits(again))
        assert not torch.equal(logits(first), logits(other))
        assert not torch.equal(logits(first), logits(trained))
        assert not first.training
        assert anatomy_of(first).num_blocks == anatomy_of(trained).num_blocks == subject.depth
        assert not any("lora" in name for name, _ in first.named_parameters())


def test_models_that_cannot_stand_side_by_side_are_one_line(bases, tmp_path):
    llama, gpt2 = found(bases / "llama", bases / "gpt2")
    check_alike([llama, gpt2])
    train_tokenizer(["Other words, many of them, zebra quartz! " * 3] * 9, 330).save_pretrained(tmp_path / "words")
    (foreign,) = found(bases / "gpt2", tokenizer_name=str(tmp_path / "words"))
    said = refused(check_alike, [llama, foreign])
    assert said == (
        f"{bases / 'llama'} and {bases / 'gpt2'} have different tokenizers; use models with the same tokenizer"
    )
    shutil.copytree(bases / "gpt2", tmp_path / "deep")
    config = json.loads((tmp_path / "deep/config.json").read_text())
    (tmp_path / "deep/config.json").write_text(json.dumps({**config, "n_layer": 3}))
    (deep,) = found(tmp_path / "deep")
    assert refused(check_alike, [gpt2, llama, deep]) == (
        f"{bases / 'gpt2'} has 2 layers and {tmp_path / 'deep'} 3, so they cannot be compared; "
        "use models of the same depth"
    )
    check_alike([gpt2, deep], same=())
    assert "tokenizers" in refused(check_alike, [foreign, llama], same=())


def test_what_is_no_language_model_or_lacks_its_tokenizer_is_one_line(bases, tmp_path):
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertForMaskedLM(BertConfig(vocab_size=330, **shape)).save_pretrained(tmp_path / "bert")
    shutil.copy(bases / "gpt2/tokenizer.json", tmp_path / "bert")
    shutil.copytree(bases / "gpt2", tmp_path / "bare", ignore=lambda *_: ["tokenizer.json", "tokenizer_config.json"])
    assert "bare has no tokenizer" in refused(found, tmp_path / "bare")
    assert "nowhere is not a folder" in refused(found, "./nowhere")
    assert "returns no weights" not in refused(anatomy_of, BertModel(BertConfig(vocab_size=330, **shape)))
    with pytest.raises(UsageError):
        anatomy_of(loaded(tmp_path / "bert", tokenizer_name=str(bases / "gpt2")))
    assert "--block_size 65 is longer than the model's 64 positions" in refused(
        find_subjects, SubjectArguments([str(bases / "gpt2")]), block_size=65
    )


@pytest.mark.parametrize(("flags", "said"), [
    ({"model_name_or_path": []}, "--model_name_or_path is missing"),
    ({"model_name_or_path": [""]}, "--model_name_or_path is missing"),
    ({"load_in_8bit": True, "load_in_4bit": True}, "--load_in_8bit and --load_in_4bit"),
    ({"seed": -1}, "--seed -1 must be"),
])  # fmt: skip
def test_flags_that_mean_nothing_are_one_line(flags, said, tmp_path):
    given = {"model_name_or_path": ["a"], "output_dir": str(tmp_path / "new")} | flags
    assert refused(check_flags, SubjectArguments(**given)).startswith(said)
    right = SubjectArguments(**{**given, "model_name_or_path": ["a", "b"], "seed": 0, "load_in_4bit": False})
    check_flags(right)
    check_subjects(right, "lens")
    assert not (tmp_path / "new").exists()  # only looked at


def test_numbers_of_models_and_places_are_checked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "file").write_text("")
    both = SubjectArguments(["run", "run/"])
    assert (
        refused(check_subjects, both, "lens") == "--model_name_or_path run run/: the same model twice; name each once"
    )
    three = SubjectArguments(["a", "b", "c"])
    said = "--model_name_or_path a b c: this probe takes {} models, not 3"
    assert refused(check_subjects, three, "lens", 2, 2) == said.format("2")
    assert refused(check_subjects, three, "lens", 1, 2) == said.format("1 to 2")
    assert refused(check_subjects, three, "lens", 4) == said.format("4 or more")
    check_subjects(three, "lens", 3, 3)
    assert "file" in refused(check_subjects, SubjectArguments(["a"], output_dir="file/x"), "lens")
    assert probe_folder(SubjectArguments(["a", "run"]), "lens").as_posix() == "run/probes/lens"
    assert probe_folder(SubjectArguments(["a"], output_dir="x"), "lens").as_posix() == "x"
    for flag in ("max_eval_samples", "per_device_eval_batch_size"):
        assert f"--{flag} 0 must be" in refused(check_flags, TextArguments(**{flag: 0}))
    check_flags(TextArguments(max_eval_samples=1))


def test_labels_tell_models_apart():
    assert short_names(["a/b/", "c/b"]) == ["a/b", "c/b"]
    assert short_names(["x"]) == ["x"]
    names = ["r/a/checkpoint-1", "r/a/checkpoint-2", "r/b/checkpoint-1", "b"]
    assert short_names(names) == ["a/checkpoint-1", "checkpoint-2", "b/checkpoint-1", "b"]


def test_texts_are_read_and_a_data_set_without_any_is_one_line(tmp_path, tiny_data):
    stories = [{"story": "A cat sat."}, {"story": "  "}, {"story": "A dog ran."}]
    (tmp_path / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in stories))
    (tmp_path / "blank.jsonl").write_text(json.dumps(stories[1]) + "\n")
    (tmp_path / "empty.jsonl").write_text("")
    args = TextArguments(dataset_name=str(tmp_path / "few.jsonl"))
    assert [record["story"] for record in read_stories(args)] == ["A cat sat.", "A dog ran."]
    args.max_eval_samples = 1
    assert [record["story"] for record in read_stories(args)] == ["A cat sat."]
    for name in ("blank", "empty", "gone"):
        path = str(tmp_path / f"{name}.jsonl")
        assert path in refused(read_stories, TextArguments(dataset_name=path))
    corpus = read_stories(TextArguments(dataset_name="tiny", data_cache_dir=str(tiny_data), dataset_split="train"))
    assert len(corpus) > 300
    assert {"story", "features"} <= corpus[0].keys()
    said = refused(read_stories, TextArguments(dataset_name="tinny", data_cache_dir=str(tiny_data)))
    assert said.startswith("tinny is not a local path and cannot be loaded from the Hub")
    assert "no texts to read" in refused(lambda: next(captured(tiny_model("llama"), [], description=None)))
    assert "64 positions; give shorter texts" in refused(
        lambda: next(captured(tiny_model("llama"), [np.ones(65, dtype=int)], description=None))
    )
    next(captured(tiny_model("llama"), [np.ones(64, dtype=int)], description=None))
