"""Flags of a fine-tuning that would do nothing, or something else than they say: each is refused in one line."""

import json
import re
import tracemalloc
from dataclasses import asdict, fields
from pathlib import Path
from types import SimpleNamespace
from typing import get_type_hints

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset
from refusals import error_line
from refusals import usage_error as refused
from transformers import PretrainedConfig, SchedulerType
from transformers.trainer_utils import HubStrategy, IntervalStrategy, SaveStrategy
from trl import pack_dataset

from lm_trials.commands import train
from lm_trials.console import UsageError
from lm_trials.flags import check_flags, parse_arguments
from lm_trials.pairs import examples as pair_tokens
from lm_trials.pairs.examples import ExampleStore, choose_layout, make_examples
from lm_trials.pairs.layouts import STORY_CHAT_TEMPLATE
from lm_trials.pairs.pairs import PairSet, open_pairs, read_row, write_pairs
from lm_trials.tokens.tokenizers import train_tokenizer
from lm_trials.training import run_arguments
from lm_trials.training import tuning_examples as examples_module
from lm_trials.training import tuning_trainer as sft_trainer
from lm_trials.training.flags import CommonTrainingArguments, DataArguments, ModelArguments
from lm_trials.training.plan import name_run
from lm_trials.training.run_arguments import RunArguments
from lm_trials.training.tuning_examples import Examples, open_examples, pack_examples
from lm_trials.training.tuning_flags import AdapterArguments, CommonSftArguments, PairArguments, check_targets
from lm_trials.training.tuning_run_arguments import SftRunArguments

# Flags of transformers.TrainingArguments, which both scripts refuse.
BOTH = {
    "batch": (("--auto_find_batch_size", "True"), "raise --gradient_accumulation_steps, which keeps"),
    "split": (("--accelerator_config", '{"split_batches": true}'), "--accelerator_config: split_batches True would"),
    "dispatch": (("--accelerator_config", '{"dispatch_batches": true}'), "dispatch_batches True would change"),
    "uneven": (("--accelerator_config", '{"even_batches": false}'), "even_batches False would change"),
    "accumulated": (
        ("--accelerator_config", '{"gradient_accumulation_kwargs": {"num_steps": 2}}'),
        "gradient_accumulation_kwargs",
    ),
    "accelerate's file": (("--accelerator_config", "nowhere.json"), "--accelerator_config nowhere.json cannot be read"),
    "fp16": (("--fp16", "True", "--use_cpu", "True"), "--fp16 True (or accelerate's mixed_precision fp16)"),
    "passes": (("--num_train_epochs", "-2"), "--num_train_epochs -2 must be"),
    "no pass": (("--num_train_epochs", "0"), "--num_train_epochs 0 must be"),
    "endless": (("--num_train_epochs", "inf"), "--num_train_epochs inf must be"),
    "galore": (("--optim", "galore_adamw"), "--optim galore_adamw: You need to install `galore_torch`"),
    "lomo": (("--optim", "lomo"), "--optim lomo: You need to install `lomo_optim`"),
    "grokadamw": (("--optim", "grokadamw"), "--optim grokadamw: Please install grokadamw"),
    "optimizer": (("--optim", "adamw_trch"), "argument --optim: invalid choice: 'adamw_trch'"),
    "its key": (
        ("--lr_scheduler_type", "cosine", "--lr_scheduler_kwargs", '{"num_cycle": 1}'),
        "--lr_scheduler_kwargs num_cycle of --lr_scheduler_type cosine: did you mean num_cycles",
    ),
    "no keys": (
        ("--lr_scheduler_type", "constant", "--lr_scheduler_kwargs", '{"last_epoch": 1}'),
        "--lr_scheduler_kwargs last_epoch of --lr_scheduler_type constant: it takes no keys",
    ),
    "key missing": (("--lr_scheduler_type", "cosine_with_min_lr"), "One of min_lr or min_lr_rate should be set"),
    "no updates after the warm-up": (
        ("--lr_scheduler_type", "polynomial", "--warmup_steps", "10", "--max_steps", "10"),
        "--lr_scheduler_type polynomial with --warmup_steps 10 has no updates after the warm-up",
    ),
    "no JSON": (("--lr_scheduler_kwargs", "{nope"), "--lr_scheduler_kwargs {nope is not valid JSON"),
    "workers": (("--dataloader_persistent_workers", "True"), "there are no workers; give --dataloader_num_workers"),
    "deepspeed": (("--deepspeed", "zero.json"), "--deepspeed shards a model over GPUs, and this run has none"),
    "fsdp": (("--fsdp", "full_shard", "--use_cpu", "True"), "--fsdp shards a model over GPUs"),
    "best": (("--metric_for_best_model", "bleu"), "--metric_for_best_model bleu: valid: accuracy"),
    "sampling": (
        ("--train_sampling_strategy", "random"),
        "use --data_seed (in lm-trials train --shuffle_buffer_size too)",
    ),
}
TUNING = {
    "kernels": (("--use_liger_kernel", "True"), "pip install liger-kernel"),
    "offloading": (("--activation_offloading", "True", "--use_cpu", "True"), "--activation_offloading True moves"),
    "best of others": (("--metric_for_best_model", "eval_rome_loss"), "--metric_for_best_model eval_rome_loss"),
    "model": (("--model_init_kwargs", "{nope"), "--model_init_kwargs {nope is not valid JSON"),
    "model, no object": (("--model_init_kwargs", "nope"), "--model_init_kwargs nope is not valid JSON"),
    "eos": (("--eos_token", "</s>"), "--eos_token </s> has no effect here; the base's own is used"),
    "processes": (("--dataset_num_proc", "2"), "--dataset_num_proc 2 has no effect here"),
    "columns": (("--remove_unused_columns", "True"), "--remove_unused_columns True has no effect"),
    "labels": (("--label_names", "labels"), "--label_names ['labels'] has no effect"),
    "lengths": (("--length_column_name", "size"), "--length_column_name size has no effect"),
    "predict": (("--do_predict", "True"), "--do_predict True has no effect"),
    "length": (("--max_length", "1"), "--max_length 1 must be"),
}
RIGHT = (
    (),
    ("--accelerator_config", '{"non_blocking": true, "even_batches": true}'),
    ("--num_train_epochs", "0.5"),
    ("--optim", "adafactor"),
    ("--lr_scheduler_type", "cosine", "--lr_scheduler_kwargs", '{"num_cycles": 1}'),
    ("--lr_scheduler_type", "cosine_with_min_lr", "--lr_scheduler_kwargs", '{"min_lr": 1e-6}'),
    ("--lr_scheduler_type", "warmup_stable_decay", "--lr_scheduler_kwargs", '{"num_decay_steps": 4}'),
    (
        "--lr_scheduler_type",
        "reduce_lr_on_plateau",
        "--lr_scheduler_kwargs",
        '{"factor": 0.5}',
        "--eval_strategy",
        "epoch",
    ),
    ("--lr_scheduler_type", "constant_with_warmup", "--warmup_steps", "2"),
    ("--lr_scheduler_type", "polynomial", "--warmup_steps", "10", "--max_steps", "11"),
    ("--lr_scheduler_type", "polynomial", "--warmup_steps", "10"),
    ("--lr_scheduler_type", "linear", "--warmup_steps", "10", "--max_steps", "10"),
    ("--dataloader_persistent_workers", "True", "--dataloader_num_workers", "1"),
    ("--use_cpu", "True", "--bf16", "True"),
)


@pytest.fixture
def parsed(tmp_path):
    """Return the arguments that flags become, of the class of one of the scripts."""

    def parse(kind, *flags):
        argv = ["--output_dir", str(tmp_path / "run"), "--report_to", "none", *flags]
        return parse_arguments(argv, (), "", full=lambda: kind)[0]

    return parse


@pytest.mark.parametrize("kind", [RunArguments, SftRunArguments])
@pytest.mark.parametrize("case", list(BOTH))
def test_a_flag_of_both_scripts_is_refused(parsed, tmp_path, kind, case):
    flags, told = BOTH[case]
    assert told in refused(parsed, kind, *flags)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("case", list(TUNING))
def test_a_flag_of_a_fine_tuning_is_refused(parsed, case):
    flags, told = TUNING[case]
    assert told in refused(parsed, SftRunArguments, *flags)


@pytest.mark.parametrize("kind", [RunArguments, SftRunArguments])
@pytest.mark.parametrize("flags", RIGHT, ids=lambda flags: " ".join(flags) or "none")
def test_what_is_right_is_not_refused(parsed, kind, flags):
    assert parsed(kind, *flags).do_train


def test_half_precision_that_accelerate_was_told_of_is_refused_too(parsed, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    assert "mixed_precision fp16" in refused(parsed, RunArguments, "--use_cpu", "True")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert parsed(RunArguments, "--use_cpu", "True").mixed_precision == "bf16"


def test_half_precision_passes_on_a_machine_that_has_it(monkeypatch):
    """Without the machine: what is refused goes by `use_cpu`."""
    given = SimpleNamespace(
        use_liger_kernel=False, deepspeed=None, fsdp="full_shard", fp16=True, bf16=False, use_cpu=False
    )
    run_arguments.check_machine(given)
    given.use_cpu = True
    assert "--fsdp" in refused(run_arguments.check_machine, given)


def test_a_missing_package_is_named_before_the_machine(monkeypatch):
    given = SimpleNamespace(use_liger_kernel=False, deepspeed="zero.json", use_cpu=True)
    monkeypatch.setattr(run_arguments, "find_spec", lambda name: None)
    assert "pip install 'lm_trials[sharded]'" in refused(run_arguments.check_machine, given)


def test_an_optimizer_that_asks_for_the_model_is_checked_as_far_as_can_be(parsed, monkeypatch):
    def asks(arguments):
        raise ValueError("You need to pass a `model` in order to correctly initialize a LOMO optimizer.")

    monkeypatch.setattr(run_arguments.Trainer, "get_optimizer_cls_and_kwargs", asks)
    assert parsed(RunArguments, "--optim", "lomo").optim.value == "lomo"


@pytest.mark.parametrize("metric", ["loss", "eval_completion_loss", "unmasked_perplexity", "accuracy"])
def test_the_best_is_sought_by_any_metric_of_an_evaluation(parsed, metric):
    args = parsed(SftRunArguments, "--metric_for_best_model", metric)
    assert args.greater_is_better is metric.endswith("accuracy")  # Trainer would keep the greatest perplexity


def test_named_data_sets_may_choose_the_best_of_a_pretraining(parsed):
    assert parsed(RunArguments, "--metric_for_best_model", "eval_filter-Twist_loss").greater_is_better is False


def test_no_layer_and_no_share_are_refused_first():
    base = {"model_name_or_path": "runs/demo"}
    pairs = PairArguments(dataset_name="far")
    layers = ["", ","]
    assert "names no layer" in refused(check_targets, AdapterArguments(**base, lora_target_modules=layers))
    layers = ["all-linear,q_proj"]
    assert "all-linear alone" in refused(check_targets, AdapterArguments(**base, lora_target_modules=layers))
    layers = ["q_proj", "default"]
    assert "default alone" in refused(check_targets, AdapterArguments(**base, lora_target_modules=layers))
    share = PairArguments(dataset_name="far", validation_split_percentage=150)
    assert "--validation_split_percentage 150 must be" in refused(check_flags, share)
    adapter = AdapterArguments(**base)
    check_flags(pairs, adapter)
    check_targets(adapter)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["How far is Rome? 12 km from Ostia, 34 km from Tivoli."] * 9, vocab_size=340)


@pytest.fixture(scope="module")
def far(tmp_path_factory):
    """Return the folder of a prepared data set of 2,300 pairs of many lengths: trl packs 1,000 of them at a time."""
    data = tmp_path_factory.mktemp("data")
    draws = np.random.default_rng(0)
    rows = (
        (
            "train" if n < 2300 else "validation",
            {"record_id": str(n), "prompt": "Far?", "completion": f"{n} km " * size},
        )
        for n, size in enumerate(draws.integers(1, 9, 2320).tolist())
    )
    write_pairs(rows, data / "far", "pairs", {})
    return data


@pytest.fixture(scope="module")
def examples(far, tokenizer):
    pairs = open_pairs("far", far)
    folder = make_examples(pairs, far / "far", tokenizer, "instruct", 64, "drop")
    return Examples(pairs=pairs, folder=folder, layout="instruct", completion_only=True, max_length=64)


def opened(far, tokenizer, arguments, positions=64, **more):
    pair_args = PairArguments(dataset_name="far", data_cache_dir=str(far), **more)
    config = PretrainedConfig(max_position_embeddings=positions)
    return open_examples(pair_args, arguments, tokenizer, config)


@pytest.mark.end_to_end
@pytest.mark.parametrize("flags", [(), ("--max_length", "None"), ("--max_length", "64")])
def test_two_spellings_of_a_length_are_one_arm(parsed, far, tokenizer, flags):
    arguments = parsed(SftRunArguments, *flags)
    assert arguments.max_length == (64 if "64" in flags else None)
    found = opened(far, tokenizer, arguments)
    assert (arguments.max_length, found.max_length) == (64, 64)


@pytest.mark.end_to_end
@pytest.mark.parametrize("asked", [65, 1024, 100000])
def test_a_length_that_was_asked_for_is_not_lowered(parsed, far, tokenizer, asked):
    arguments = parsed(SftRunArguments, "--max_length", str(asked))
    line = refused(opened, far, tokenizer, arguments)
    assert line.startswith(f"--max_length {asked} is longer than the model's 64 positions")
    assert opened(far, tokenizer, parsed(SftRunArguments), positions=4096).max_length == 1024


def test_none_on_the_command_line_takes_back_what_a_file_says(parsed, tmp_path):
    (tmp_path / "flags.yaml").write_text("max_length: 32\n")
    given = ("--config", str(tmp_path / "flags.yaml"))
    assert parsed(SftRunArguments, *given).max_length == 32
    assert parsed(SftRunArguments, *given, "--max_length", "None").max_length is None
    assert "invalid int value: 'many'" in refused(parsed, SftRunArguments, "--max_length", "many")
    assert "invalid int value: 'None'" in refused(parsed, SftRunArguments, "--seed", "None")


@pytest.mark.parametrize("layout", ["instruct", "text"])
def test_a_template_without_effect_is_refused(parsed, far, tokenizer, tmp_path, layout, monkeypatch):
    (tmp_path / "mine.jinja").write_text(STORY_CHAT_TEMPLATE)
    arguments = parsed(SftRunArguments, "--chat_template_path", str(tmp_path / "mine.jinja"))
    monkeypatch.setattr(examples_module, "dataset_of", lambda *args, **kwargs: pytest.fail("it was opened first"))
    assert f"has no effect on the layout {layout}" in refused(
        lambda: opened(far, tokenizer, arguments, prompt_layout=layout)
    )


def test_a_template_has_no_effect_on_texts(parsed, tokenizer, tmp_path):
    write_pairs([("train", {"record_id": "a", "text": "12 km"})], tmp_path / "far", "texts", {})
    (tmp_path / "mine.jinja").write_text(STORY_CHAT_TEMPLATE)
    arguments = parsed(SftRunArguments, "--chat_template_path", str(tmp_path / "mine.jinja"))
    assert "has no effect on the layout text" in refused(lambda: opened(tmp_path, tokenizer, arguments))


@pytest.mark.parametrize(
    ("content", "said"), [(b"", "is empty"), (b"\xef\xbb\xbf \n", "is empty"), (b"caf\xe9", "cannot be read (")]
)
def test_a_template_without_text_is_refused_and_a_byte_order_mark_is_none(
    parsed, far, tokenizer, tmp_path, content, said
):
    path = tmp_path / "mine.jinja"
    arguments = parsed(SftRunArguments, "--chat_template_path", str(path))
    path.write_bytes(content)
    assert f"{path} {said}" in refused(lambda: opened(far, tokenizer, arguments))
    path.write_bytes(b"\xef\xbb\xbf" + STORY_CHAT_TEMPLATE.encode())
    assert examples_module._template(str(path)) == STORY_CHAT_TEMPLATE


BROKEN = "{% for message in messages %}\n{{ message['content' }}{% endfor %}"


def test_an_error_in_a_template_is_told_as_one(parsed, far, tokenizer, tmp_path, monkeypatch):
    (tmp_path / "mine.jinja").write_text(BROKEN)
    arguments = parsed(SftRunArguments, "--chat_template_path", str(tmp_path / "mine.jinja"))
    line = refused(lambda: opened(far, tokenizer, arguments))
    assert line.startswith(f"--chat_template_path {tmp_path / 'mine.jinja'} is not a template (")
    assert ", line 2); correct it" in line
    monkeypatch.setattr(tokenizer, "chat_template", BROKEN)
    monkeypatch.setattr(tokenizer, "name_or_path", "ours")
    line = refused(choose_layout, PairSet("far", Path(), "pairs", {}, {}), tokenizer)
    assert line.startswith("the chat template of ours is not a template (")
    assert "roles" not in line
    refusing = "{{ raise_exception('it begins with a user') }}"  # of a conversation, and this is none
    monkeypatch.setattr(tokenizer, "chat_template", refusing)
    assert choose_layout(PairSet("far", Path(), "pairs", {}, {}), tokenizer) == "chat"


@pytest.mark.parametrize("column", ["prompt", "completion", "text", "messages"])
def test_a_missing_value_is_named(column):
    row = {"prompt": "Far?", "completion": "12 km"} if column in ("prompt", "completion") else {}
    assert refused(read_row, {**row, column: None}).startswith(f"{column} is missing a value")
    assert read_row({"prompt": "Far?", "completion": "12 km", "text": None})[0] == "pairs"


@pytest.mark.parametrize("strategy", ["bfd", "bfd_split"])
def test_packed_rows_are_those_that_trl_makes_of_the_tokens(examples, monkeypatch, strategy):
    """Of the tokens all at once, which need 170 bytes each in lists; here some thousand examples at a time."""
    monkeypatch.setattr(examples_module, "PACKED_AT_ONCE", 1000)
    rows = examples.rows(SimpleNamespace(packing=True, packing_strategy=strategy))
    at_once = pack_dataset(Dataset.from_list(list(examples.train.labelled(True))), 64, strategy)
    assert len(rows.data) == len(at_once) < 2300
    columns = ("input_ids", "labels", "seq_lengths")
    assert [[row[name] for name in columns] for row in rows.data] == [
        [row[name] for name in columns] for row in at_once
    ]
    assert rows.lengths_N.tolist() == [len(row) for row in at_once["labels"]]
    assert rows.counted_N.tolist() == [sum(label != -100 for label in row) for row in at_once["labels"]]
    monkeypatch.setattr(examples_module, "PACKED_TOGETHER", 500)
    others = examples.rows(SimpleNamespace(packing=True, packing_strategy=strategy))
    assert [row["seq_lengths"] for row in others.data] != [row["seq_lengths"] for row in rows.data]


def test_packed_rows_are_read_when_they_are_asked_for(examples, monkeypatch):
    """Neither packing nor choosing the order of the passes reads a token."""
    read = []
    labelled = ExampleStore.labelled

    def watched(self, completion_only):
        def note(batch):
            read.append(len(batch["input_ids"]))
            return {"input_ids": batch["input_ids"], "labels": batch["input_ids"]}

        return labelled(self, completion_only).with_transform(note)

    monkeypatch.setattr(ExampleStore, "labelled", watched)
    rows = examples.rows(SimpleNamespace(packing=True, packing_strategy="bfd"))
    chosen = rows.data.select([3, 1, 3])
    assert read == []
    assert chosen[0] == chosen[2] != chosen[1]
    assert sum(read) < 30


def test_every_example_is_packed_once():
    lengths_N = np.random.default_rng(1).integers(2, 65, 2500)
    bins = pack_examples(lengths_N, 64, "bfd").to_pylist()
    assert sorted(number for numbers in bins for number in numbers) == list(range(2500))
    assert max(lengths_N[numbers].sum() for numbers in bins) == 64


@pytest.mark.parametrize("completion_only", [True, False])
def test_lengths_are_those_of_the_examples(examples, completion_only):
    store = examples.train
    lengths_N, counted_N = store.lengths(completion_only)
    assert lengths_N.dtype == counted_N.dtype == np.int64
    masks = [store.completion_mask(n) if completion_only else np.ones(int(lengths_N[n])) for n in range(300)]
    assert counted_N[:300].tolist() == [int(mask[1:].sum()) for mask in masks]
    assert (counted_N < lengths_N - 1).any() is np.bool_(completion_only)


def test_masks_are_counted_without_a_copy_of_all():
    size = 10**7
    masks = pa.ListArray.from_arrays(np.arange(0, size + 1, 500, dtype=np.int32), np.ones(size, dtype=np.uint8))
    tracemalloc.start()
    counted_N = pair_tokens._counted(masks)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert counted_N.tolist() == [499] * 20000
    assert peak < size / 2  # as int64 they are 8 bytes a token


@pytest.mark.end_to_end
def test_a_run_says_its_settled_length(parsed, far, tokenizer):
    arguments = parsed(SftRunArguments)
    opened(far, tokenizer, arguments, positions=48)
    assert json.loads(json.dumps(asdict(arguments), default=str))["max_length"] == 48


def test_the_assistants_loss_is_that_of_the_completions(tmp_path):
    """trl has two flags for it; in `run.json` they are one, so that two spellings are one arm."""
    args = SftRunArguments(output_dir=str(tmp_path), assistant_only_loss=True)
    assert (args.completion_only_loss, args.assistant_only_loss) == (True, False)
    assert SftRunArguments(output_dir=str(tmp_path)).completion_only_loss is None
    with pytest.raises(UsageError, match="remove one of them"):
        SftRunArguments(output_dir=str(tmp_path), assistant_only_loss=True, completion_only_loss=False)


def test_what_trl_refuses_is_one_line_and_faults_of_ours_keep_their_traceback(tmp_path, monkeypatch):
    def refuse(error):
        def made(**kwargs):
            (tmp_path / "run").mkdir()  # as Trainer does
            raise error

        monkeypatch.setattr(sft_trainer, "FineTuner", made)

    arguments = SimpleNamespace(output_dir=str(tmp_path / "run"))
    for error in (ValueError("packing and loss do not go together"), ImportError("liger is missing")):
        refuse(error)
        with pytest.raises(UsageError, match=str(error)):
            sft_trainer.make_trainer(sft_trainer.FineTuner, args=arguments)
        assert not (tmp_path / "run").exists()
    refuse(AttributeError("no such thing"))
    with pytest.raises(AttributeError, match="no such thing"):
        sft_trainer.make_trainer(sft_trainer.FineTuner, args=arguments)


# Ranges of the flags of transformers and trl, checked before these are loaded

SCRIPTS = {
    "train": ((DataArguments, ModelArguments), CommonTrainingArguments, RunArguments),
    "tune": ((PairArguments, AdapterArguments), CommonSftArguments, SftRunArguments),
}
NO_RANGE = {
    "local_rank": "launchers set it",
    "dataset_num_proc": "has no effect and is refused",
    "router_aux_loss_coef": "any weight of a loss",
    "pad_to_multiple_of": "trl checks it",
}


class Loaded(Exception):
    """The class of the training arguments would be loaded now."""


def load():
    raise Loaded


def bounded_flags():
    for script, (own, common, _) in SCRIPTS.items():
        for field in fields(common):
            if field.metadata["check"].bounds:
                yield pytest.param(own, common, field, id=f"{script}-{field.name}")


@pytest.mark.parametrize(("own", "common", "field"), list(bounded_flags()))
def test_a_value_beyond_the_range_is_refused_before_anything_is_loaded(own, common, field, tmp_path):
    check, kind = field.metadata["check"], get_type_hints(common)[field.name]
    step = 1 if kind is int else 0.25
    edges = [(check.least, -step, 0), (check.above, 0, step), (check.most, step, 0), (check.below, 0, -step)]
    wrong = [edge + beyond for edge, beyond, _ in edges if edge is not None]
    right = [edge + inside for edge, _, inside in edges if edge is not None]
    given = ["--model_name_or_path", "m", "--dataset_name", "d"]
    file = tmp_path / "flags.yaml"
    for value in [*wrong, "x", *([] if kind is int else ["nan", "inf"])]:
        file.write_text(f"{field.name}: {value}")
        for argv in ([f"--{field.name}={value}"], ["--config", str(file)]):
            with pytest.raises(UsageError, match=rf"--{field.name}\b"):
                parse_arguments([*given, *argv], own, "", common, load)
    for value in right:
        with pytest.raises(Loaded):
            parse_arguments([*given, f"--{field.name}={value}"], own, "", common, load)


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_number_of_the_library_has_a_range_or_a_reason(script):
    _, common, full = SCRIPTS[script]
    ranges = {field.name for field in fields(common) if field.metadata["check"].bounds}
    numbers = {field.name for field in fields(full) if re.search(r"int|float", str(field.type).replace("point", ""))}
    numbers -= {field.name for field in fields(full) if "PeftConfig" in str(field.type)}
    assert numbers - ranges == NO_RANGE.keys() & numbers


def test_the_words_of_a_flag_are_the_librarys():
    words = {field.name: set(field.metadata["check"].one_of) for field in fields(CommonTrainingArguments)}
    for name, kind in {
        "lr_scheduler_type": SchedulerType, "eval_strategy": IntervalStrategy, "logging_strategy": IntervalStrategy,
        "save_strategy": SaveStrategy, "hub_strategy": HubStrategy,
    }.items():  # fmt: skip
        assert words.pop(name) == {word.value for word in kind}
    assert not any(words.values())


def test_a_wrong_value_is_refused_before_the_device_is_looked_for(capsys, monkeypatch):
    def never():
        raise AssertionError("torch would be loaded")

    monkeypatch.setattr(train, "load_libraries", never)
    for argv in (["--block_size", "1"], ["--seed", "-1"], ["--run_name", "../x"], ["--num_sampled_stories", "x"]):
        assert argv[0] in error_line(capsys, train.main, "--dataset_name", "stories.jsonl", *argv)
    with pytest.raises(AssertionError, match="torch would be loaded"):
        train.with_recipe(["--dataset_name", "stories.jsonl", "--block_size", "2"])


@pytest.mark.parametrize(
    ("model", "data", "name"),
    [
        ("demo", "generated", "demo-generated-s42"),
        ("demo", "a+b", "demo-a+b-s42"),
        ("../../small/config.json", "../stories.jsonl", "small-config.json-stories-s42"),
        ("m" * 300, "é" * 300, f"{'m' * 100}-{'é' * 50}-s42"),
    ],
)
def test_the_name_of_a_run_by_default_is_a_folder_in_runs(tmp_path, monkeypatch, model, data, name):
    monkeypatch.chdir(tmp_path)
    args = RunArguments(report_to="none", use_cpu=True)
    name_run(args, model, DataArguments(dataset_name=data))
    assert (args.run_name, args.output_dir) == (name, f"runs/{name}")
