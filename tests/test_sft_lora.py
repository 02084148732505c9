"""sft_lora.py as a user runs it: ranks, quantized bases, both losses, merging, and the mistakes that it names."""

import json
import shutil

import numpy as np
import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from refusals import error_line
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

import sft_lora
from lm_trials.console import UsageError
from lm_trials.models import adapters, quantization
from lm_trials.models.reference import load_config, load_model, resolve_model
from lm_trials.pairs.examples import ExampleStore
from lm_trials.tokens.tokenizers import load_tokenizer
from lm_trials.training.initial import InitialModel
from lm_trials.training.tuning_examples import row_order

# Inputs and outputs of the tiny Llama's linear layers: attention 4 x (32, 32), gate and up (32, 64), down (64, 32).
LINEAR_SIZES = 2 * (4 * (32 + 32) + 3 * (32 + 64))


@pytest.fixture
def stores(tiny_data):
    """Return the examples of a split of a run."""

    def store(run, split):
        described = json.loads((run / "run.json").read_text())["outcome"]["data"]
        return ExampleStore(tiny_data / described["name"] / described["examples"], split)

    return store


@pytest.mark.parametrize("rank", [1, 3])
def test_the_rank_that_was_asked_for_is_the_adapters(tune_flags, tmp_path, capsys, rank):
    """The published code ignored it: 55,296 parameters stand in its own output where rank 2 makes 27,648."""
    sft_lora.main(tune_flags("run", "--max_steps", "1", "--lora_r", str(rank), "--lora_alpha", "5"))
    tensors = load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in tensors.values()) == rank * LINEAR_SIZES
    assert {min(tensor.shape) for tensor in tensors.values()} == {rank}
    shown = " ".join(capsys.readouterr().out.split())
    assert f"{rank * LINEAR_SIZES:,} trained of {33_440 + rank * LINEAR_SIZES:,}" in shown
    assert f"r = {rank}, alpha = 5, dropout = 0, on 14 modules: q_proj (2)" in shown
    model = load_model(resolve_model(str(tmp_path / "run")))
    assert {layer.scaling["default"] for layer in adapters.adapted_layers(model).values()} == {5 / rank}


def test_named_modules_alone_carry_adapters(tune_flags, tmp_path):
    flags = tune_flags("run", "--max_steps", "1", "--lora_dropout", "0.25")
    sft_lora.main([*flags, "--lora_target_modules", "q_proj", "v_proj"])
    tensors = load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert {name.split(".")[-3] for name in tensors} == {"q_proj", "v_proj"}
    assert json.loads((tmp_path / "run" / "adapter_config.json").read_text())["lora_dropout"] == 0.25


def test_what_counts_in_the_loss_is_told(tune_flags, stores, tmp_path, capsys):
    sft_lora.main(tune_flags("run"))
    said = capsys.readouterr()
    shown = " ".join(said.out.split())
    next_command = f"lm-trials generate --model_name_or_path {tmp_path / 'run'} --prompt 'Write about "
    assert next_command in shown
    assert (
        "of 120 examples are held out for validation; for about 20, give --validation_split_percentage 17" in said.err
    )
    sft_lora.main(tune_flags("run"))
    assert next_command in " ".join(capsys.readouterr().out.split())  # of the finished run
    store = stores(tmp_path / "run", "train")
    lengths_N, counted_N = store.lengths(completion_only=True)
    assert [len(store.input_ids(n)) for n in range(len(store))] == lengths_N.tolist()
    assert [int(store.completion_mask(n)[1:].sum()) for n in range(len(store))] == counted_N.tolist()
    assert f"{len(store):,} examples, {lengths_N.sum():,} tokens, layout instruct" in shown
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    tokens = run["logistics"]
    share = tokens["num_completion_tokens"] / tokens["num_tokens"]
    assert f"{tokens['num_completion_tokens']:,} of {tokens['num_tokens']:,} ({share:.1%}), of the completions" in shown
    numbers = row_order(len(store), 16, data_seed=42)
    assert tokens["num_completion_tokens"] == counted_N[numbers].sum() != tokens["num_tokens"]
    assert run["outcome"]["num_examples"] == 16
    assert 0 < run["logistics"]["num_tokens"] < lengths_N.sum()  # 16 examples of some hundred


def test_both_losses_are_those_of_an_independent_sum(tune_flags, stores, tmp_path):
    """Each example by itself, in double precision; the batch size changes nothing."""
    metrics = sft_lora.main(tune_flags("run", "--per_device_eval_batch_size", "3"))
    store, model = (
        stores(tmp_path / "run", "validation"),
        load_model(resolve_model(str(tmp_path / "run")), torch.float64),
    )
    completion, everything = [], []
    for number in range(len(store)):
        ids = torch.from_numpy(store.input_ids(number))
        with torch.no_grad():
            logits = model(input_ids=ids[None]).logits[0, :-1]
        nats = nn.functional.cross_entropy(logits, ids[1:], reduction="none").numpy()
        everything.append(nats)
        completion.append(nats[store.completion_mask(number)[1:] == 1])
    completion, everything = np.concatenate(completion), np.concatenate(everything)
    assert metrics["eval_completion_loss"] == pytest.approx(completion.mean(), abs=1e-5)
    assert metrics["eval_unmasked_loss"] == pytest.approx(everything.mean(), abs=1e-5)
    assert (metrics["eval_completion_tokens"], metrics["eval_unmasked_tokens"]) == (len(completion), len(everything))
    assert (
        metrics["eval_loss"]
        == metrics["eval_completion_loss"]
        != pytest.approx(metrics["eval_unmasked_loss"], abs=0.05)
    )
    assert (
        metrics["eval_completion_loss_lower"] < metrics["eval_completion_loss"] < metrics["eval_completion_loss_upper"]
    )
    again = sft_lora.main(tune_flags("run", "--do_eval", "True", "--per_device_eval_batch_size", "8"))
    assert again["eval_completion_loss"] == pytest.approx(metrics["eval_completion_loss"], abs=1e-6)


PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] ~ ':\\n' ~ message['content'] ~ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:\\n' }}{% endif %}"
)


def test_the_tokens_of_a_chat_template_are_recorded_and_one_that_reads_the_clock_is_refused(
    tune_flags, tiny_data, tmp_path, capsys
):
    template = tmp_path / "t.jinja"
    flags = ("--chat_template_path", str(template), "--prompt_layout", "chat", "--max_steps", "1", "--do_eval", "False")
    found = []
    for number, text in enumerate(("", "Be kind. ", "")):
        template.write_text(text + PLAIN_TEMPLATE)
        sft_lora.main(tune_flags(f"run{number}", *flags))
        found.append(json.loads((tmp_path / f"run{number}" / "run.json").read_text())["outcome"]["data"])
    assert found[0] == found[2]
    assert {name for name in found[0] if found[0][name] != found[1][name]} == {
        *("chat_template", "counts", "examples", "token_ids"),
    }
    template.write_text("{{ strftime_now('%Y') }}" + PLAIN_TEMPLATE)
    line = error_line(capsys, sft_lora.main, *tune_flags("clock", *flags))
    assert "the chat template renders the date or a random value" in line
    assert line.startswith("error: the conversation ")
    assert not (tmp_path / "clock").exists()
    assert not [place for place in tiny_data.rglob("*unfinished*") if "examples" in place.name]


@pytest.mark.parametrize("completion_only", ["True", "False"])
def test_the_training_loss_is_that_of_the_tokens_that_count(tune_flags, stores, tmp_path, completion_only):
    """Of the first update, before anything is learned; also that a prompt counts or does not."""
    more = ("--max_steps", "1", "--learning_rate", "0", "--completion_only_loss", completion_only)
    sft_lora.main(tune_flags("run", *more, "--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "3"))
    run = tmp_path / "run"
    store, model = stores(run, "train"), load_model(resolve_model(str(run)), torch.float64)
    nats, counted = 0.0, 0
    for number in row_order(len(store), 6, data_seed=42):
        ids, mask = torch.from_numpy(store.input_ids(int(number))), store.completion_mask(int(number))[1:] == 1
        with torch.no_grad():
            logits = model(input_ids=ids[None]).logits[0, :-1]
        losses = nn.functional.cross_entropy(logits, ids[1:], reduction="none").numpy()
        scored = losses[mask] if completion_only == "True" else losses
        nats, counted = nats + scored.sum(), counted + len(scored)
    (row,) = [row for row in json.loads((run / "trainer_state.json").read_text())["log_history"] if "loss" in row]
    assert row["loss"] == pytest.approx(nats / counted, abs=1e-5)


def test_a_quantized_base_begins_where_the_other_does(tune_flags, tmp_path):
    """Nothing but the base differs: the same adapter, in float32 (trl makes it bfloat16), and nearly the same loss."""
    found = {}
    for name, more in {"32": (), "8": ("--load_in_8bit", "True"), "4": ("--load_in_4bit", "True")}.items():
        metrics = sft_lora.main(tune_flags(name, "--max_steps", "1", "--learning_rate", "0", *more))
        found[name] = (metrics, load_file(tmp_path / name / "adapter_model.safetensors"))
    for name in ("8", "4"):
        assert all(torch.equal(found["32"][1][key], tensor) for key, tensor in found[name][1].items())
        difference = abs(found["32"][0]["eval_loss"] - found[name][0]["eval_loss"])
        assert 0 < difference < {"8": 0.05, "4": 0.5}[name]  # it is quantized
    assert {tensor.dtype for tensor in found["8"][1].values()} == {torch.float32}


@pytest.mark.parametrize("bits", [(), ("--load_in_8bit", "True")])
def test_merged_into_the_unquantized_weights(tune_flags, tiny_base, tmp_path, capsys, bits):
    sft_lora.main(tune_flags("run", *bits, "--merge_output", str(tmp_path / "merged")))
    shown = " ".join(capsys.readouterr().out.split())
    difference = float(shown.split("merged - unmerged ")[1].split()[0])
    assert abs(difference) < (0.05 if bits else 1e-5)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    base = AutoModelForCausalLM.from_pretrained(tiny_base)
    ids = torch.arange(3, 40)[None]
    plain = base(ids).logits.detach()
    with adapters.without_noise():
        adapted = PeftModel.from_pretrained(base, tmp_path / "run")
    assert torch.allclose(adapted(ids).logits, merged(ids).logits, atol=1e-5)
    assert (plain - merged(ids).logits).abs().max() > 1e-3
    again = sft_lora.main(tune_flags("run", *bits, "--merge_output", str(tmp_path / "merged")))  # nothing is left to do
    assert "is already finished" in capsys.readouterr().out
    assert again["eval_loss"] > 0


@pytest.mark.parametrize("bits", [8, 4])
def test_a_base_that_was_saved_quantized_is_that_base(tune_flags, tiny_base, tmp_path, capsys, bits):
    """transformers ignores a flag for another quantization, and fails late to train or merge whole weights."""
    saved = tmp_path / "saved"
    shutil.copytree(tiny_base, saved, ignore=shutil.ignore_patterns("*.safetensors", "finished.json"))
    config = BitsAndBytesConfig(**{f"load_in_{bits}bit": True})
    quantized = load_model(resolve_model(str(tiny_base)), quantization_config=config)
    quantized.save_pretrained(saved)
    ids = torch.arange(3, 40)[None]
    reference = resolve_model(str(saved))
    assert torch.equal(load_model(reference)(ids).logits, quantized(ids).logits)
    assert not torch.equal(load_model(resolve_model(str(tiny_base)))(ids).logits, quantized(ids).logits)
    with pytest.raises(UsageError, match="saved has quantized weights, on which an adapter alone can be trained"):
        InitialModel(load_config(reference), load_tokenizer(str(saved)), reference).load(seed=0)
    base = ("--max_steps", "1", "--model_name_or_path", str(saved))
    for more, told in (
        (("--merge_output", str(tmp_path / "merged")), "--merge_output needs whole weights and those of"),
        (("--full_finetune", "True"), "--full_finetune needs whole weights and those of"),
        (("--load_in_8bit", "True"), "saved has quantized weights, which cannot be quantized again"),
    ):
        assert told in refused(tune_flags("run", *base, *more), capsys)
        assert not (tmp_path / "run").exists()
    sft_lora.main(tune_flags("run", *base))
    assert load_model(resolve_model(str(tmp_path / "run"))).is_quantized


def test_merging_spares_what_is_there(tune_flags, tiny_base, tmp_path, capsys):
    """Neither the base, nor another run's merged model, nor a place that cannot be written, after all the training."""
    sft_lora.main(tune_flags("one", "--max_steps", "1", "--merge_output", str(tmp_path / "merged")))
    before = (tmp_path / "merged" / "model.safetensors").read_bytes()
    base = ("--model_name_or_path", str(tmp_path / "merged"))
    for more, told in (
        (("--merge_output", str(tmp_path / "merged"), "--lora_r", "3"), "is not empty; give another folder"),
        (("--merge_output", str(tmp_path / "merged"), *base), "overlaps the folder of the base"),
        (("--merge_output", str(tmp_path)), "overlaps the folder of the run"),
        (("--merge_output", "/proc/merged"), "cannot be written to"),
    ):
        assert told in refused(tune_flags("two", *more), capsys)
        assert not (tmp_path / "two").exists()
    assert (tmp_path / "merged" / "model.safetensors").read_bytes() == before
    assert (tiny_base / "model.safetensors").is_file()


def test_a_merge_that_fails_loses_no_training(tune_flags, tmp_path, capsys, monkeypatch):
    from lm_trials.training import merging

    flags = tune_flags("run", "--merge_output", str(tmp_path / "merged"))
    monkeypatch.setattr(merging, "merge_adapter", lambda *args: (_ for _ in ()).throw(ZeroDivisionError))
    with pytest.raises(ZeroDivisionError):
        sft_lora.main(flags)
    weights = (tmp_path / "run" / "adapter_model.safetensors").read_bytes()
    monkeypatch.undo()
    capsys.readouterr()
    sft_lora.main(flags)
    assert "fine-tuning" not in capsys.readouterr().out  # nothing is trained again
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    assert (tmp_path / "run" / "adapter_model.safetensors").read_bytes() == weights


def test_what_merging_changes_is_measured(tune_flags, stores, tmp_path, capsys):
    """The printed difference is that of the two models' losses, by `example_sums` of each."""
    from lm_trials.evaluation.example_losses import example_sums

    more = ("--load_in_4bit", "True", "--merge_output", str(tmp_path / "merged"), "--max_eval_samples", "9")
    metrics = sft_lora.main(tune_flags("run", *more))
    shown = " ".join(capsys.readouterr().out.split())
    sums = example_sums(load_model(resolve_model(str(tmp_path / "merged"))), stores(tmp_path / "run", "validation"), 9)
    merged = sums[:, 0].sum() / sums[:, 1].sum()
    printed = float(shown.split("merged - unmerged ")[1].split()[0])
    assert printed == pytest.approx(merged - metrics["eval_completion_loss"], rel=0.1)
    assert abs(printed) > 1e-4
    assert metrics["eval_completion_samples"] == 9  # --max_eval_samples is heeded


def test_evaluating_alone_is_of_this_very_run(tune_flags, tmp_path, capsys):
    """Another scale or base would give numbers of another model under this run's name."""
    metrics = sft_lora.main(tune_flags("run"))
    kept = (tmp_path / "run" / "eval_results.json").read_bytes()
    alone = ("--do_eval", "True", "--do_train", "False")
    again = sft_lora.main(tune_flags("run", *alone))
    assert again["eval_loss"] == pytest.approx(metrics["eval_loss"], abs=1e-6)
    kept = (tmp_path / "run" / "eval_results.json").read_bytes()
    for more in (("--lora_alpha", "99"), ("--lora_r", "5"), ("--full_finetune", "True")):
        assert "cannot be resumed" in refused(tune_flags("run", *alone, *more), capsys)
    assert "has no run.json" in refused(tune_flags("nothing", *alone), capsys)
    assert (tmp_path / "run" / "eval_results.json").read_bytes() == kept


def test_a_run_without_validation_examples_is_finished_too(tune_flags, tmp_path, capsys):
    flags = tune_flags("run", "--validation_split_percentage", "0.0001")
    assert sft_lora.main(flags) == {}
    capsys.readouterr()
    assert sft_lora.main(flags) == {}
    assert "no validation data" in capsys.readouterr().out


def test_an_adapters_base_is_found_from_elsewhere_or_named(tune_flags, tiny_base, tmp_path, monkeypatch):
    """By a relative path as it was named where the run was started; never as a model of that name on the Hub."""
    from lm_trials.console import UsageError

    (tmp_path / "bases").mkdir()
    shutil.copytree(tiny_base, tmp_path / "bases" / "one")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    sft_lora.main(tune_flags("run", "--max_steps", "1", "--model_name_or_path", "bases/one"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    load_model(resolve_model(str(tmp_path / "run")))
    shutil.rmtree(tmp_path / "bases")
    with pytest.raises(UsageError, match="its base bases/one does not exist"):
        resolve_model(str(tmp_path / "run"))


def test_a_finished_run_is_merged_afterwards(tune_flags, tmp_path, capsys):
    sft_lora.main(tune_flags("run"))
    weights = (tmp_path / "run" / "adapter_model.safetensors").read_bytes()
    sft_lora.main(tune_flags("run", "--merge_output", str(tmp_path / "merged")))
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    assert (tmp_path / "run" / "adapter_model.safetensors").read_bytes() == weights


def test_it_is_plain_peft(tune_flags, tmp_path):
    sft_lora.main(tune_flags("run"))
    ours = load_model(resolve_model(str(tmp_path / "run")))
    with adapters.without_noise():
        plain = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "run")
    ids = torch.arange(3, 40)[None]
    assert torch.equal(ours(ids).logits, plain(ids).logits)


def test_all_weights_for_the_comparison(tune_flags, tiny_base, tmp_path, capsys):
    sft_lora.main(tune_flags("run", "--full_finetune", "True"))
    assert "33,440 trained of 33,440" in " ".join(capsys.readouterr().out.split())
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny_base, tmp_path / "run"))
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[name], after[name]) for name in before)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["use_cache"] is True


def test_a_base_that_never_saw_eos_is_told_of(tune_flags, capsys):
    """LoRA trains no token's row: such a model ended 0.345 of its stories, one whose weights were all trained 0.995."""
    sft_lora.main(tune_flags("lora", "--max_steps", "1"))
    assert "was trained without EOS" in capsys.readouterr().err
    sft_lora.main(tune_flags("full", "--max_steps", "1", "--full_finetune", "True"))
    assert "was trained without EOS" not in capsys.readouterr().err


def test_a_gpt2_too(tune_flags, train_flags, tmp_path):
    import train_gpt2

    shape = "n_embd=32,n_layer=2,n_head=2"
    train_gpt2.main(train_flags("base", "--model_type", "gpt2", "--config_overrides", shape, "--block_size", "64"))
    for name, more in {"plain": (), "8bit": ("--load_in_8bit", "True")}.items():
        flags = tune_flags(
            name, "--model_name_or_path", str(tmp_path / "base"), "--lora_target_modules", "c_attn", *more
        )
        sft_lora.main(flags)
        tensors = load_file(tmp_path / name / "adapter_model.safetensors")
        assert sum(tensor.numel() for tensor in tensors.values()) == 2 * 2 * (32 + 96)
        metrics = sft_lora.main([*flags, "--merge_output", str(tmp_path / f"{name}-merged")])
        merged, adapted = (load_model(resolve_model(str(tmp_path / f"{name}{end}"))) for end in ("-merged", ""))
        ids = torch.arange(3, 40)[None]
        assert torch.allclose(merged(ids).logits, adapted(ids).logits, atol=1e-5)
        assert metrics["eval_loss"] > 0


def test_going_on_with_an_adapter(tune_flags, tmp_path, capsys):
    sft_lora.main(tune_flags("first"))
    sft_lora.main(tune_flags("second", "--adapter_name_or_path", str(tmp_path / "first"), "--learning_rate", "0"))
    first, second = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("first", "second"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    given = ("--adapter_name_or_path", str(tmp_path / "first"))
    assert "has lora_alpha 16" in refused(tune_flags("third", *given, "--lora_alpha", "4"), capsys)
    assert "give --lora_r 2" in refused(tune_flags("third", *given, "--lora_r", "4"), capsys)


def test_an_adapter_as_the_model_is_trained_further(tune_flags, tmp_path):
    first = str(tmp_path / "first")
    sft_lora.main(tune_flags("first"))
    weights, runs = {}, {}
    for name, flag in {"as_model": "--model_name_or_path", "as_adapter": "--adapter_name_or_path"}.items():
        words = tune_flags(name, flag, first)
        if name == "as_model":  # the rank is the adapter's
            words = words[: words.index("--lora_r")] + words[words.index("--lora_r") + 2 :]
        sft_lora.main(words)
        weights[name] = (tmp_path / name / "adapter_model.safetensors").read_bytes()
        runs[name] = json.loads((tmp_path / name / "run.json").read_text())
    assert weights["as_model"] == weights["as_adapter"] != (tmp_path / "first/adapter_model.safetensors").read_bytes()
    model, adapter = (runs[name]["outcome"] for name in ("as_model", "as_adapter"))
    assert {name for name in model if model[name] != adapter[name]} == {"lora_target_modules"}  # names, and all-linear
    assert model["lora_r"] == 2


def test_two_runs_give_the_same_bits_and_another_seed_does_not(tune_flags, tmp_path):
    bits = {}
    for name, more in {"a": (), "b": (), "seed": ("--seed", "7"), "order": ("--data_seed", "7")}.items():
        sft_lora.main(tune_flags(name, *more))
        bits[name] = (tmp_path / name / "adapter_model.safetensors").read_bytes()
    assert bits["a"] == bits["b"]
    assert len({bits["a"], bits["seed"], bits["order"]}) == 3


def test_runs_are_compared_on_their_own_examples(tune_flags, tmp_path, capsys, monkeypatch):
    """A trial of one variable: the number of tokens goes with the seed and is none, nor is how a base is kept."""
    from lm_trials.trials import compare

    monkeypatch.chdir(tmp_path)
    arms = {
        "a0": (),
        "a1": ("--seed", "1"),
        "b0": ("--load_in_8bit", "True"),
        "b1": ("--load_in_8bit", "True", "--seed", "1"),
    }
    for name, more in arms.items():
        sft_lora.main(tune_flags(name, *more))
    capsys.readouterr()
    compare.main([str(tmp_path / name) for name in arms])
    shown = " ".join(capsys.readouterr().out.split())
    assert "exactly one variable differs: load_in_8bit" in shown
    assert "completions" in shown
    assert "B minus A, these models, new stories" in shown
    assert "Nothing can be said about the recipe: A has 1 root seed (2 fine-tunings); B has 1 root seed" in shown
    assert "new seeds" not in shown  # all are of one base
    sft_lora.main(tune_flags("c0", "--load_in_8bit", "True", "--lora_r", "3"))
    compare.main([str(tmp_path / name) for name in ("a0", "c0")])
    assert "2 variables differ" in " ".join(capsys.readouterr().out.split())


def test_each_pass_has_an_order_of_its_own():
    first, second = np.split(row_order(100, 200, data_seed=0), 2)
    assert sorted(first) == sorted(second) == list(range(100))
    assert first.tolist() != second.tolist()


def test_strategies_by_epoch_and_arguments_of_the_model_are_heeded(tune_flags, tmp_path):
    more = ("--eval_strategy", "epoch", "--max_steps", "60", "--model_init_kwargs", '{"attn_implementation": "eager"}')
    sft_lora.main(tune_flags("run", *more))
    rows = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    examples = json.loads((tmp_path / "run" / "run.json").read_text())["outcome"]["data"]["counts"]["examples"]
    assert [row["step"] for row in rows if "eval_loss" in row][:2] == [examples // 4, 2 * (examples // 4)]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["logistics"]["num_train_epochs"] > 2


def test_long_examples_are_cut_or_dropped_as_asked(tune_flags, tmp_path, capsys):
    for name, kept in (("drop", "0 cut"), ("cut", "0 dropped")):
        sft_lora.main(tune_flags(name, "--max_steps", "1", "--max_length", "32", "--overlong", name))
        assert kept in " ".join(capsys.readouterr().out.split())


def test_conversations_give_a_model_without_a_template_one(tune_flags, tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": f"Hi {n}"}, {"role": "assistant", "content": "The cat sat."}] * 2}
        for n in range(60)
    ]
    file = tmp_path / "talk.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sft_lora.main(tune_flags("run", "--dataset_name", str(file)))
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run")
    ids = tokenizer.apply_chat_template(rows[0]["messages"], return_dict=True)["input_ids"]
    assert ids.count(tokenizer.eos_token_id) == 3  # before the first turn and after each answer
    assert json.loads((tmp_path / "run" / "run.json").read_text())["outcome"]["prompt_layout"] == "chat"


def refused(argv, capsys):
    return error_line(capsys, sft_lora.main, *argv)


BAD = {
    "no model": (("--model_name_or_path", "nowhere/at/all"), "nowhere/at/all is not a folder"),
    "both": (
        ("--load_in_8bit", "True", "--load_in_4bit", "True"),
        "--load_in_8bit and --load_in_4bit",
    ),
    "full and quantized": (
        ("--full_finetune", "True", "--load_in_8bit", "True"),
        "--full_finetune and --load_in_8bit cannot be combined",
    ),
    "rank": (("--lora_r", "0"), "--lora_r 0 must be"),
    "alpha": (("--lora_alpha", "0"), "--lora_alpha 0"),
    "dropout": (("--lora_dropout", "1"), "--lora_dropout 1 must be"),
    "module": (("--lora_target_modules", "q_prj"), "did you mean q_proj"),
    "one of two modules": (("--lora_target_modules", "q_proj", "c_attn"), "--lora_target_modules c_attn"),
    "head": (("--lora_target_modules", "lm_head"), "lm_head is the output head"),
    "dora": (("--use_dora", "True", "--load_in_8bit", "True"), "--use_dora and --load_in_8bit cannot be combined"),
    "positions": (("--max_length", "100000"), "--max_length 100000 is longer than the model's"),
    "all too long": (("--max_length", "5"), "the shortest has"),
    "wrapped": (("--packing", "True", "--packing_strategy", "wrapped"), "lets examples attend to earlier ones"),
    "code": (("--trust_remote_code", "True"), "remote code is never run"),
    "layout": (("--prompt_layout", "text"), "has prompts; give instruct or chat"),
    "template": (("--prompt_layout", "chat"), "has no chat template"),
    "no updates": (("--max_steps", "-1", "--num_train_epochs", "0.001"), "makes no update of 4"),
    "nothing held out": (
        ("--validation_split_percentage", "0.01", "--eval_strategy", "steps"),
        "has no validation examples",
    ),
    "taken": (("--merge_output", "."), "--merge_output . is not empty"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_a_mistake_is_one_line(tune_flags, tmp_path, capsys, case):
    flags, told = BAD[case]
    line = refused(tune_flags("run", *flags), capsys)
    assert line.startswith("error: ")
    assert told in line
    assert not (tmp_path / "run").exists()


MAMBA_HEADS = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8}
JOINING = [("--padding_free", "True"), ("--packing", "True")]


@pytest.mark.parametrize("flags", JOINING, ids=" ".join)
@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("bloom", {"n_layer": 1, "n_head": 2}),
        ("mamba", {"state_size": 4, "num_hidden_layers": 1}),
        ("bamba", {"num_hidden_layers": 1, "attn_layer_indices": [], **MAMBA_HEADS}),  # takes boundaries with kernels
        ("llama", {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}),
    ],
)
def test_examples_are_joined_only_where_they_stay_apart(tune_flags, tiny_data, tmp_path, capsys, kind, shape, flags):
    """On the model itself: state-space models and those with masks of their own read the example before."""
    config = AutoConfig.for_model(kind, vocab_size=400, hidden_size=16, pad_token_id=None, **shape)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    load_tokenizer(str(tiny_data / "tok400")).save_pretrained(tmp_path / "base")
    argv = tune_flags("run", "--model_name_or_path", str(tmp_path / "base"), "--full_finetune", "True", *flags)
    argv += ["--max_steps", "1"]
    if kind == "llama":
        assert sft_lora.main(argv)["eval_loss"] > 0
        return
    line = refused(argv, capsys)
    assert line.startswith(f"error: {' '.join(flags)}: the tokens of a {kind} attend to the examples before theirs")
    assert not (tmp_path / "run").exists()
    if (kind, flags) == ("bloom", JOINING[0]):  # the neighbour: padded, it is trained
        assert sft_lora.main([word for word in argv if word not in flags])["eval_loss"] > 0


def test_rows_without_prompts_are_named(tune_flags, tmp_path, capsys):
    (tmp_path / "bad.jsonl").write_text('{"question": "How far?", "answer": "12 km"}\n')
    line = refused(tune_flags("run", "--dataset_name", str(tmp_path / "bad.jsonl")), capsys)
    assert "the columns are question, answer" in line
    assert not list(tmp_path.glob("run*"))


def test_a_machine_without_the_back_end_is_told_what_to_drop(tune_flags, capsys, monkeypatch):
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    assert "pip install bitsandbytes, or remove --load_in_8bit" in refused(
        tune_flags("a", "--load_in_8bit", "True"), capsys
    )
    monkeypatch.undo()
    import bitsandbytes

    monkeypatch.setattr(bitsandbytes, "supported_torch_devices", {"cuda"})
    line = refused(tune_flags("a", "--load_in_4bit", "True"), capsys)
    assert "bitsandbytes has no kernels for cpu; remove it" in line


def test_an_adapter_for_another_base_is_refused(tune_flags, tiny_base, tmp_path, capsys):
    base, other = tmp_path / "base", tmp_path / "other"
    shutil.copytree(tiny_base, base)
    sft_lora.main(tune_flags("lora", "--model_name_or_path", str(base)))
    shutil.copytree(base, other)
    weights = load_file(other / "model.safetensors")
    from safetensors.torch import save_file

    save_file({name: tensor + 1 for name, tensor in weights.items()}, other / "model.safetensors", {"format": "pt"})
    given = ("--model_name_or_path", str(other), "--adapter_name_or_path", str(tmp_path / "lora"))
    assert "is an adapter for another base" in refused(tune_flags("run", *given), capsys)
    both = ("--model_name_or_path", str(tmp_path / "lora"), "--full_finetune", "True")
    assert "lora is an adapter already; remove --full_finetune" in refused(tune_flags("run", *both), capsys)
    load_model(resolve_model(str(tmp_path / "lora")))
    shutil.copy(other / "model.safetensors", base / "model.safetensors")
    from lm_trials.console import UsageError

    with pytest.raises(UsageError, match="is an adapter for another base"):
        load_model(resolve_model(str(tmp_path / "lora")))
