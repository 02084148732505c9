"""Flags of `lm-trials train`, and the common flags of `TrainingArguments` for `--help`; no torch."""

import json
import re
from argparse import SUPPRESS
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from lm_trials.console import UsageError
from lm_trials.flags import SEED, option
from lm_trials.shared_flags import DataReading
from lm_trials.snapshots import SNAPSHOTS
from lm_trials.stories.features import FEATURES
from lm_trials.training.order_flags import DataOrdering, PhaseOrder, check_order

RATE: dict[str, Any] = {"least": 0, "most": 100, "why": "5e4 is not 5e-4"}
STEPS: dict[str, Any] = {"above": 0, "whole": True}
WHEN = ("no", "steps", "epoch")
SCHEDULES = (
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt",
    "reduce_lr_on_plateau", "cosine_with_min_lr", "cosine_warmup_with_min_lr", "warmup_stable_decay", "greedy",
)  # fmt: skip


@dataclass
class DataArguments(DataReading, DataOrdering):
    """The training data."""

    flag_group: ClassVar[str] = "data"

    dataset_name: str = option("generated", help="A prepared data set, else a file or folder, else a Hub data set.")
    data_mix: str | None = option(None, help="Shares of a mixture's parts, for example .3,.7. Default: equal.")
    data_mix_unit: Literal["tokens", "documents"] = option("tokens", help="Unit of --data_mix.")
    stop_when: Literal["first_exhausted", "all_exhausted"] = option(
        "first_exhausted", help="End of a pass over a mixture; all_exhausted repeats parts that end early."
    )
    inject: str | None = option(
        None,
        filled=True,
        not_with=("order_schedule", "order_by", "order", "keep", "dataset_config_name"),
        why="it is short for an --order_schedule",
        help="NAME@FIRST-LAST[:SHARE]: read the data set NAME in these updates, alone or as a share of the tokens.",
    )
    validation_split_percentage: float | None = option(
        None, above=0, most=50, help="Percentage held out as the validation split where there is none, by hash."
    )
    eval_datasets: str | None = option(
        None, help="More prepared data sets to evaluate, as a,b; adds the train and test splits."
    )
    tokenizer_name: str | None = option(
        None, help="A folder, a .model file or a Hub name. Default: trained on the data."
    )
    vocab_size: int = option(0, least=0, help="Tokenizer of `lm-trials prepare train_vocab --vocab_size N`; 0: none.")
    block_size: int | None = option(
        None, least=2, help="Tokens of a block. Default: the model's positions, at most 1024."
    )
    append_eos: bool = option(False, help="Add EOS after each story, besides --document_separator.")
    document_separator: Literal["bos", "eos", "none"] = option("bos", help="Token before each story.")
    attention_across_documents: bool = option(True, help="Let tokens attend to earlier stories in their block.")
    shuffle_buffer_size: int | None = option(
        None, least=1, help="Documents in the shuffle buffer; 1: no shuffle. Default: all; for streams 10000."
    )
    max_train_tokens: int | None = option(None, least=1, help="Tokens to train on, instead of --max_steps.")
    max_eval_samples: int | None = option(500, least=1, help="Most stories of each split to evaluate; None: all.")
    sentences_with: list[str] = option(
        [], one_of=FEATURES, distinct=True, help="Also evaluate the sentences that show these features, such as Twist."
    )
    dense_eval_steps: int = option(0, least=0, help="Number of first updates with ten times as many evaluations.")
    dense_eval_spacing: Literal["linear", "geometric"] = option(
        "linear", help="Spacing of these evaluations; geometric: it grows by a constant factor."
    )
    generate_every: int = option(5, least=0, help="Generate for prompts at each N-th evaluation; 0: never.")
    num_generations: int = option(16, least=1, help="Stories generated each time, for each protocol set.")
    generation_tokens: int = option(200, least=1, help="Maximum tokens of these stories.")


def check_reading(data_args: DataArguments) -> None:
    """Check the order of the data, and write its defaults out, in place; see `order_flags.check_order`.

    Raises:
        UsageError: for an order or a filter of a stream, a shuffle buffer without effect, or a wrong injection.
    """
    if data_args.inject:
        _write_injection(data_args, data_args.inject)
    check_order(data_args)
    buffer, streaming = data_args.shuffle_buffer_size, data_args.streaming
    given = next((name for name in ("order_by", "keep", "order_schedule") if getattr(data_args, name)), None)
    if given and streaming != "False":
        raise UsageError(
            f"--{given} with --streaming {streaming}: sorting and filtering need the metrics of all records, and a "
            "stream is read once; remove --streaming"
        )
    if data_args.order == "file":
        if (buffer or 1) > 1:
            raise UsageError(f"--order file and --shuffle_buffer_size {buffer}, which shuffles; remove one of them")
        data_args.order, data_args.shuffle_buffer_size = None, 1  # the same arm
    if buffer is not None and data_args.order_by and not data_args.order_window:
        raise UsageError(
            f"--shuffle_buffer_size {buffer} has no effect, because --order_by sorts all records; remove it, or give "
            "--order_window"
        )


def _write_injection(data_args: DataArguments, given: str) -> None:
    """Write an injection as the mixture and the schedule that it is short for, in place."""
    name, data_args.inject = data_args.dataset_name, None
    if "+" in name:
        raise UsageError(f"--inject {given}: --dataset_name {name} is a mixture; write the phases in --order_schedule")
    found = re.fullmatch(r"(.+)@(\d+(?:-\d*)?)(?::(\d*\.?\d+))?", given)
    share = float(found[3] or 1) if found else 2
    if not found or share > 1:
        raise UsageError(
            f"--inject {given} is not NAME@FIRST-LAST or NAME@FIRST-LAST:SHARE; give, for example, facts@101-110:.5"
        )
    try:
        first, last = PhaseOrder(updates=found[2]).span
    except UsageError as error:
        raise UsageError(f"--inject {given}: {error}") from None
    before = [{"updates": f"1-{first - 1}", "data_mix": "1,0"}] if first > 1 else []
    after = [{"updates": f"{last + 1}-", "data_mix": "1,0"}] if last else []
    injected = {"updates": found[2], "data_mix": f"{1 - share:g},{share:g}"}
    data_args.dataset_name = f"{name}+{found[1]}"
    data_args.order_schedule = json.dumps([*before, injected, *after])


@dataclass(kw_only=True)
class SavedArguments:
    """What is saved besides a checkpoint every `--save_steps` updates, and logged besides the loss."""

    flag_group: ClassVar[str] = "output"

    checkpoint_ladder: bool = option(False, help="Also save update 0 and the updates that are powers of two.")
    snapshot: list[str] = option(
        [],
        one_of=SNAPSHOTS,
        distinct=True,
        help="Also save with each checkpoint, for some validation stories: attention, embeddings, gradients, "
        "activations; as a,b.",
    )
    snapshot_samples: int = option(4, least=1, needs="snapshot", help="Number of these stories.")
    window_metrics: list[str] = option(
        [],
        distinct=True,
        help="Also log the means of these metrics of `lm-trials prepare metadata` over the records read since the last "
        "log line; as a,b.",
    )

    def __post_init__(self) -> None:
        self.snapshot, self.window_metrics = _words(self.snapshot), _words(self.window_metrics)


def _words(given: list[str]) -> list[str]:
    """Return the words of lists as `a,b`."""
    return [word.strip() for each in given for word in each.split(",") if word.strip()]


@dataclass
class ModelArguments(SavedArguments):
    """The model."""

    flag_group: ClassVar[str] = "model"

    model_name_or_path: str | None = option(
        None, aliases=["--model_dir"], help="Initial weights: a run, a checkpoint, a model folder or a Hub name."
    )
    model_type: str | None = option(
        None, help="gpt2, llama or another type of AutoModelForCausalLM. Default: the preset's, else gpt2."
    )
    config_name: str | None = option(
        None, help="A preset (demo, stories260K, base8M, base30M, base91M, base210M, gpt2-51M, ...) or a config.json."
    )
    config_overrides: str | None = option(None, help="Configuration fields, as n_embd=512,n_layer=8,n_head=8.")
    dropout: float | None = option(
        None, least=0, below=1, help="All dropouts of the model type (Llama: attention only). Default: the library's."
    )
    num_sampled_stories: int = option(2, least=0, help="Stories generated at each evaluation for TensorBoard.")
    sample_tokens: int = option(200, least=1, help="Maximum tokens of a sampled story.")
    overwrite_output_dir: bool = option(False, help="Replace another run in --output_dir.")
    accept_other_code: bool = option(False, help="Resume although the code or a library has changed.")


def check_training(data_args: DataArguments, model_args: ModelArguments) -> None:
    """Check the order of the data (see `check_reading`), and refuse metrics of a stream."""
    check_reading(data_args)
    if model_args.window_metrics and data_args.streaming != "False":
        raise UsageError(
            f"--window_metrics {','.join(model_args.window_metrics)} with --streaming {data_args.streaming}: a stream "
            "has no table of metrics; remove one of them"
        )


@dataclass
class CommonTrainingArguments:
    """Common flags of transformers.TrainingArguments; `--help_all` shows all."""

    flag_group: ClassVar[str] = "training"

    output_dir: str = option("runs/<run_name>", output=True, group="output", help="Folder of the run.")
    run_name: str = option("<model>-<data>-s<seed>", folder_name=True, group="output", help="Name of the run.")
    max_steps: int = option(-1, least=1, unless=-1, help="Number of updates; overrides --num_train_epochs.")
    num_train_epochs: float = option(3.0, above=0, help="Passes over the training split.")
    per_device_train_batch_size: int = option(8, least=1, help="Blocks in a batch of each process.")
    per_device_eval_batch_size: int = option(8, least=1, help="Blocks in a batch of each process in evaluation.")
    gradient_accumulation_steps: int = option(1, least=1, help="Batches of each process in an update.")
    learning_rate: float = option(5e-5, **RATE, help="Peak learning rate; see docs/choosing_sizes.md.")
    lr_scheduler_type: str = option(
        "linear", one_of=SCHEDULES, help="Schedule: linear, cosine, constant, constant_with_warmup, ..."
    )
    warmup_steps: float = option(0, least=0, help="Updates of warm-up, or their share if below 1.")
    weight_decay: float = option(0.0, least=0, help="Weight decay of AdamW, on matrices only.")
    eval_strategy: str = option("no", one_of=WHEN, help="no, steps or epoch.")
    eval_steps: float = option(None, **STEPS, help="Updates between evaluations, or their share if below 1.")
    save_steps: float = option(
        500, **STEPS, group="output", help="Updates between checkpoints, or their share if below 1."
    )
    logging_steps: float = option(
        10, **STEPS, group="output", help="Updates between log lines, or their share if below 1."
    )
    seed: int = option(42, **SEED, help="Seed of initial weights and dropout.")
    data_seed: int = option(None, **SEED, help="Seed of the data order. Default: --seed.")
    bf16: bool = option(False, help="bfloat16 mixed precision; slow on CPUs without bf16 units.")
    report_to: str = option("tensorboard", group="output", help="tensorboard, wandb, trackio, none.")
    do_train: bool = option(False, help="Train; the default unless only --do_eval is given.")
    do_eval: bool = option(False, help="Evaluate after training; alone: evaluate the run in --output_dir.")
    resume_from_checkpoint: str = option(None, help="Checkpoint to resume from; False: none. Default: the last.")
    push_to_hub: bool = option(
        False, group="output", help="Push the model to the Hub; --hub_strategy (--help_all) sets when."
    )
    hub_model_id: str = option(
        None, group="output", help="Repository, as OWNER/NAME. Default: the name of --output_dir."
    )

    # Not shown by `--help`: their bounds, so that a wrong value is refused before torch is loaded.
    adam_beta1: float = option(0.9, least=0, below=1, help=SUPPRESS)
    adam_beta2: float = option(0.999, least=0, below=1, help=SUPPRESS)
    adam_epsilon: float = option(1e-8, least=0, below=1, help=SUPPRESS)
    max_grad_norm: float = option(1.0, least=0, help=SUPPRESS)
    label_smoothing_factor: float = option(0.0, least=0, below=1, help=SUPPRESS)
    neftune_noise_alpha: float = option(None, least=0, help=SUPPRESS)
    logging_strategy: str = option("steps", one_of=WHEN, help=SUPPRESS)
    save_strategy: str = option("steps", one_of=(*WHEN, "best"), help=SUPPRESS)
    hub_strategy: str = option(
        "every_save", one_of=("end", "every_save", "checkpoint", "all_checkpoints"), help=SUPPRESS
    )
    eval_delay: float = option(0, least=0, help=SUPPRESS)
    eval_accumulation_steps: int = option(None, least=1, help=SUPPRESS)
    save_total_limit: int = option(None, least=0, help=SUPPRESS)
    torch_empty_cache_steps: int = option(None, least=1, help=SUPPRESS)
    dataloader_num_workers: int = option(0, least=0, most=1024, help=SUPPRESS)
    dataloader_prefetch_factor: int = option(None, least=1, help=SUPPRESS)
    ddp_bucket_cap_mb: int = option(None, least=1, help=SUPPRESS)
    ddp_timeout: int = option(1800, least=1, help=SUPPRESS)
