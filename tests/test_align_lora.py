"""align_lora.py as a user runs it: both methods, their references and rewards, and the mistakes that it names."""

import json
import re

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from refusals import error_line
from transformers import AutoModelForCausalLM

import align_lora
import sft_lora
from lm_trials.models.reference import load_model, resolve_model
from lm_trials.tokens.tokenizers import load_tokenizer
from lm_trials.training.data_order import main as tell_order


def run_of(folder):
    return json.loads((folder / "run.json").read_text())


def log_of(folder):
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated")  # in peft itself
def test_preferences_end_to_end(align_flags, tiny_base, tmp_path, capsys):
    """Its adapter is plain PEFT; the same command again evaluates nothing, and with --do_eval alone the same."""
    flags = align_flags("dpo", "run", "--eval_strategy", "steps", "--eval_steps", "2")
    metrics = align_lora.main(flags)
    folder = tmp_path / "run"
    shown = " ".join(capsys.readouterr().out.split())
    assert "run-dpo" not in shown
    assert "reference the base" in shown
    assert f"next lm-trials generate --model_name_or_path {folder} --prompt 'Write about" in shown
    assert metrics["eval_rewards/margins"] > 0 < metrics["eval_rewards/accuracies_lower"]
    assert metrics["eval_loss"] < 0.65 < 0.6931
    found = [row["eval_loss"] for row in log_of(folder) if "eval_loss" in row]
    assert len(found) == 2
    assert found[1] == metrics["eval_loss"] < found[0]
    run = run_of(folder)
    assert run["outcome"]["method"] == "dpo"
    assert run["outcome"]["prompt_layout"] == "instruct"
    assert (run["outcome"]["beta"], run["outcome"]["num_examples"]) == (0.1, 16)
    assert run["logistics"]["num_completion_tokens"] < run["logistics"]["num_tokens"]
    assert run["outcome"]["initial_model"]["weights_sha256"]
    ids_BT = torch.tensor([[2, 60, 61, 1, 70]])
    plain = AutoPeftModelForCausalLM.from_pretrained(folder)
    own = load_model(resolve_model(str(folder)))
    by_hand = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base), folder)
    logits = [model(input_ids=ids_BT).logits for model in (plain.eval(), own, by_hand.eval())]
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])
    assert not torch.equal(logits[0], load_model(resolve_model(str(tiny_base)))(input_ids=ids_BT).logits)
    assert load_tokenizer(str(folder)).chat_template  # so that chat programs can use it
    assert align_lora.main(flags)["eval_loss"] == metrics["eval_loss"]
    assert "is already finished validation loss 0." in " ".join(capsys.readouterr().out.split())
    again = align_lora.main([*flags, "--do_eval", "True", "--per_device_eval_batch_size", "3"])
    assert again["eval_loss"] == pytest.approx(metrics["eval_loss"], abs=1e-6)
    parts = tell_order([str(folder), "--step", "4"])
    assert len(parts) == 8
    assert "from pass 1" in capsys.readouterr().out


def test_rewards_end_to_end(align_flags, tiny_pairs, tmp_path, capsys):
    """Each reward is logged by itself, from columns of a file; held-out judges stand beside it."""
    rows = [json.loads(line) for line in tiny_pairs.read_text().splitlines()]
    path = tmp_path / "asked.jsonl"
    asked = [{"prompt": row["prompt"], "words": ["cat", "sit"], "city": None} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in asked))
    more = ("--dataset_name", str(path), "--reward_weights", "1", "0.5", "2", "--log_completions", "True")
    flags = align_flags("grpo", "run", *more, "--max_completion_length", "16", "--beta", "0.1")
    metrics = align_lora.main([*flags, "--reward_funcs", "words"])
    shown = " ".join(capsys.readouterr().out.split())
    folder = tmp_path / "run"
    assert "rewards 1 x length:5, 0.5 x letters, 2 x words completions 4 of each prompt, at most 16 tokens" in shown
    names = ("length:5", "letters", "words")
    weighted = [weight * metrics[f"eval_rewards/{name}/mean"] for weight, name in zip((1, 0.5, 2), names, strict=True)]
    assert metrics["eval_reward"] == pytest.approx(sum(weighted))
    assert "eval_judges/repeated_4grams" in metrics
    trained = [row for row in log_of(folder) if "loss" in row]
    assert len(trained) == 4
    for row in trained:
        assert row["reward"] == pytest.approx(
            sum(weight * row[f"rewards/{name}/mean"] for weight, name in zip((1, 0.5, 2), names, strict=True)), abs=1e-5
        )
    assert len(list((folder / "completions").glob("*.parquet"))) == 4
    run = run_of(folder)
    described = run["outcome"]["rewards"]
    assert [(reward["reward"], reward["weight"]) for reward in described] == [*zip(names, (1, 0.5, 2), strict=True)]
    assert described[1]["sha256"]
    assert run["outcome"]["num_generations"] == 4
    assert str(tmp_path) not in json.dumps(described)


def test_prompts_of_conversations_are_answered_in_the_chat_template(align_flags, tmp_path):
    """The last answer of each is left out; the reward gets messages, as from trl."""
    rows = [
        {"messages": [{"role": "user", "content": f"Hi {n}"}, {"role": "assistant", "content": "Hello"}]}
        for n in range(60)
    ]
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "chat.py").write_text(
        "def polite(prompts, completions, **columns):\n"
        "    assert [message['role'] for message in prompts[0]] == ['user']\n"
        "    return [len(answer[0]['content']) / 10 for answer in completions]\n"
    )
    flags = align_flags("grpo", "run", "--dataset_name", str(path), "--max_steps", "1")
    place = flags.index("--reward_funcs")
    metrics = align_lora.main([*flags[:place], *flags[place + 3 :], "--reward_funcs", f"{tmp_path / 'chat.py'}:polite"])
    assert metrics["eval_reward"] > 0
    assert run_of(tmp_path / "run")["outcome"]["prompt_layout"] == "chat"


def test_an_adapter_is_aligned_with_itself_as_the_reference(align_flags, tune_flags, tiny_base, tmp_path, capsys):
    """And in the layout that it was fine-tuned in; nothing of the reference is saved."""
    sft_lora.main(tune_flags("tuned", "--max_steps", "2"))
    start = ("--model_name_or_path", str(tmp_path / "tuned"), "--learning_rate", "0", "--lora_r", "8")
    metrics = align_lora.main(align_flags("dpo", "run", *start, "--max_steps", "1"))
    assert metrics["eval_loss"] == pytest.approx(0.693147, abs=1e-5)
    assert f"the initial adapter, {tmp_path / 'tuned'}" in " ".join(capsys.readouterr().out.split())
    assert not (tmp_path / "run" / "ref").exists()
    ids_BT = torch.tensor([[2, 60, 61, 1, 70]])
    one, other = (load_model(resolve_model(str(tmp_path / name)))(input_ids=ids_BT).logits for name in ("run", "tuned"))
    assert torch.equal(one, other)
    run = run_of(tmp_path / "run")
    assert run["outcome"]["lora_r"] == 2  # its own: 8 is the default
    assert [stage["run_name"] for stage in run["lineage"]] == [
        run_of(tmp_path / "tuned")["run_name"], run_of(tiny_base)["run_name"],
    ]  # fmt: skip
    other = ("--ref_model_name_or_path", str(tmp_path / "tuned"), "--learning_rate", "0", "--max_steps", "1")
    metrics = align_lora.main(align_flags("dpo", "other", *other))
    assert metrics["eval_loss"] != pytest.approx(0.693147, abs=1e-3)
    reference = run_of(tmp_path / "other")["outcome"]["reference_model"]
    assert reference["run"]["run_name"] == run_of(tmp_path / "tuned")["run_name"]


@pytest.mark.slow  # 20 s
@pytest.mark.parametrize("method", ["dpo", "grpo"])
@pytest.mark.parametrize("more", [("--load_in_8bit", "True"), ("--load_in_4bit", "True"), ("--full_finetune", "True")])
def test_on_other_weights(align_flags, tmp_path, method, more):
    metrics = align_lora.main(align_flags(method, "run", *more, "--beta", "0.1"))
    assert metrics["eval_samples"] > 8
    align_lora.main([*align_flags(method, "run", *more, "--beta", "0.1"), "--do_eval", "True"])
    load_model(resolve_model(str(tmp_path / "run")))


@pytest.mark.slow  # 5 s
def test_merged_it_is_the_same_model(align_flags, tmp_path):
    align_lora.main(align_flags("dpo", "run", "--merge_output", str(tmp_path / "merged")))
    ids_BT = torch.tensor([[2, 60, 61, 1, 70]])
    one, other = (
        load_model(resolve_model(str(tmp_path / name)))(input_ids=ids_BT).logits for name in ("run", "merged")
    )
    assert torch.allclose(one, other, atol=1e-5)


@pytest.fixture
def wrong(align_flags, tmp_path, capsys):
    """Return the line that refuses a command, which leaves no run behind."""

    def line(method, *more, drop=()):
        flags = align_flags(method, "run", *more)
        for flag in drop:
            place = flags.index(flag)
            end = next((n for n in range(place + 1, len(flags)) if flags[n].startswith("--")), len(flags))
            del flags[place:end]
        said = error_line(capsys, align_lora.main, *flags)
        assert not (tmp_path / "run" / "run.json").exists()
        return said

    return line


def test_what_a_method_lacks_or_cannot_use_is_named(wrong, tiny_pairs, tiny_preferences, tmp_path):
    assert "--method grpo needs --reward_funcs" in wrong("grpo", drop=["--reward_funcs"])
    assert "--method is missing; give --method dpo, or grpo" in wrong("dpo", drop=["--method"])
    assert "--method dpo and --reward_funcs cannot be combined" in wrong("dpo", "--reward_funcs", "ends")
    assert "--method grpo and --ref_model_name_or_path cannot" in wrong("grpo", "--ref_model_name_or_path", "a")
    assert "has pairs and no columns chosen and rejected; make preferences with" in wrong(
        "dpo", "--dataset_name", str(tiny_pairs)
    )
    assert "--lora_dropout 0.1 has no effect with --disable_dropout True" in wrong("dpo", "--lora_dropout", "0.1")
    assert "--reward_funcs word: unknown reward; did you mean words?" in wrong("grpo", "--reward_funcs", "word")
    assert "unrecognized flag --num_generations" in wrong("dpo", "--num_generations", "4")
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "A cat."}\n' * 9)
    assert "no column prompt, or messages; the columns are text" in wrong("grpo", "--dataset_name", str(texts))
    rows = [{"prompt": f"Use {n} cats.", "words": [], "city": "Rome"} for n in range(20)]
    (tmp_path / "empty.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = wrong("grpo", "--dataset_name", str(tmp_path / "empty.jsonl"), "--reward_funcs", "words")
    assert "--reward_funcs words: the column words of" in line
    assert "is empty in each of 1" in line
    for column in ("prompt_ids", "completions", "image"):  # the first would replace the prompt's tokens
        rows = [{"prompt": f"Use {n} cats.", column: [5, 6]} for n in range(20)]
        (tmp_path / "column.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        line = wrong("grpo", "--dataset_name", str(tmp_path / "column.jsonl"))
        assert f"column.jsonl has a column {column}, a name that the Trainer gives to rewards or reads itself" in line
    for flag, value in (
        ("truncation_mode", "keep_end"),
        ("padding_free", "True"),
        ("precompute_ref_log_probs", "True"),
    ):
        assert f"--{flag} {value} has no effect here; " in wrong("dpo", f"--{flag}", value)
    for flag, value in (("use_vllm", "True"), ("shuffle_dataset", "True"), ("log_completions_hub_repo", "a/b")):
        assert f"--{flag} {value} has no effect here; " in wrong("grpo", f"--{flag}", value)
    (tmp_path / "same.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "b"}\n' * 3)
    assert "line 1: chosen and rejected are equal, and nothing is preferred; 3 such rows" in wrong(
        "dpo", "--dataset_name", str(tmp_path / "same.jsonl")
    )
    with_preferences = ("--dataset_name", str(tiny_preferences))
    assert "has preferences and no completions; learn from them with lm-trials align --method dpo" in error_of_tune(
        wrong, with_preferences
    )


def error_of_tune(wrong, more):
    """The same line of the other command, with the flags of this one that both have."""
    main, align_lora.main = align_lora.main, sft_lora.main
    try:
        return wrong("dpo", *more, drop=["--method"])
    finally:
        align_lora.main = main


def test_numbers_that_do_not_fit_are_named(wrong, tmp_path):
    assert (
        "--num_generations 3 does not divide the 4 completions that are sampled together "
        "(--per_device_train_batch_size 4 x 1 processes x --steps_per_generation 1)"
    ) in wrong("grpo", "--num_generations", "3")
    line = wrong("grpo", "--max_completion_length", "250")
    assert re.search(r"(\d+) of \1 prompts leave fewer than 250 tokens for a completion; the longest has", line)
    assert re.search(r"of the model's 256 positions; give --max_completion_length 2\d\d, or remove long prompts", line)
    assert "--max_length 1000 is longer than the model's 256 positions" in wrong("dpo", "--max_length", "1000")
    assert "preferences.jsonl fits; the shortest has" in wrong("dpo", "--max_length", "5")
    assert "--reward_weights has 1 weights and --reward_funcs 2 rewards" in wrong("grpo", "--reward_weights", "1")


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("raise KeyError('far')", "raises KeyError: 'far'"),
        ("return [float('nan')] * len(completions)", "returns nan"),
        ("return [1.0]", "returns 1 values for 2 completions"),
        ("return [1.0 / (len(completions) < 3)] * len(completions)", "update 1: "),
    ],
)
def test_a_reward_that_cannot_be_used_is_named_before_or_with_the_update(align_flags, tmp_path, capsys, source, fault):
    (tmp_path / "bad.py").write_text(f"def bad(prompts, completions, **columns):\n    {source}\n")
    flags = align_flags("grpo", "run", "--reward_funcs", f"{tmp_path / 'bad.py'}:bad")
    line = error_line(capsys, align_lora.main, *flags)
    assert fault in line
    assert "bad.py:bad" in line
    assert (tmp_path / "run" / "run.json").exists() == fault.startswith("update")


def test_a_reference_of_another_tokenizer_is_refused(wrong, tiny_data, train_flags, tmp_path):
    import train_gpt2

    data = ("--vocab_size", "0", "--tokenizer_name", str(other_tokenizer(tmp_path)), "--max_steps", "1")
    train_gpt2.main(train_flags("other", *data))
    line = wrong("dpo", "--ref_model_name_or_path", str(tmp_path / "other"))
    assert "has another tokenizer than base, and log probabilities of other tokens cannot be compared" in line


def other_tokenizer(folder):
    from tiny_models import tiny_tokenizer

    tiny_tokenizer().save_pretrained(folder / "tokenizer")
    return folder / "tokenizer"
