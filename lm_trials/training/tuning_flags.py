"""The flags of `sft_lora.py` that need no torch: ours, and those of trl's `SFTConfig` that `--help` shows."""

from dataclasses import dataclass
from typing import Literal

from lm_trials.console import UsageError
from lm_trials.flags import option
from lm_trials.stories.records import validation_from


@dataclass
class PairArguments:
    """What is learned."""

    dataset_name: str = option(
        "",
        help="A prepared set of pairs in --data_cache_dir, else a file or folder, else a Hub data set; its columns are "
        "prompt and completion, messages, or text.",
    )
    dataset_config_name: str | None = option(None, help="Configuration of a Hub data set, or part of a folder.")
    validation_split_percentage: float | None = option(
        None, help="Share of a train split without a validation split that becomes one, by hash of the row."
    )
    data_cache_dir: str = option("data", help="Folder of prepared data sets.")
    layout: Literal["instruct", "chat", "text"] | None = option(
        None,
        help="instruct: [EOS] prompt [BOS] completion [EOS]; chat: the tokenizer's chat template; text: of a set "
        "without prompts. Default: chat where the tokenizer has a template or rows are conversations, else instruct.",
    )
    overlong: Literal["drop", "cut"] = option(
        "drop", help="What becomes of examples longer than --max_length; how many is told."
    )
    max_eval_samples: int | None = option(500, help="Examples of the validation split that are evaluated.")


@dataclass
class AdapterArguments:
    """What learns it."""

    model_name_or_path: str | None = option(
        None, aliases=["--model_dir"], help="The base: a run, a checkpoint, a model folder or Hub name."
    )
    adapter_name_or_path: str | None = option(
        None, help="Begin with the weights of this adapter, made on the same base."
    )
    load_in_8bit: bool = option(False, help="Quantize the base to 8 bits (LLM.int8); on CUDA and on the CPU.")
    load_in_4bit: bool = option(False, help="Quantize the base to 4 bits (nf4).")
    dtype: Literal["float32", "bfloat16", "float16"] = option("float32", help="Number format of the base's weights.")
    full_finetune: bool = option(False, help="Train all weights instead of an adapter, for the comparison.")
    lora_r: int = option(8, help="Rank of the adapter.")
    lora_alpha: float = option(16.0, help="The adapter's product is scaled by alpha / r.")
    lora_dropout: float = option(0.0, help="Dropout before the adapter.")
    lora_target_modules: list[str] = option(
        ["all-linear"], help="Names of the layers that carry adapters, as q_proj v_proj; or all-linear."
    )
    use_dora: bool = option(False, help="Weight-decomposed LoRA; not on an 8-bit base.")
    use_rslora: bool = option(False, help="Scale by alpha / sqrt(r).")
    merge_output: str | None = option(
        None, help="Folder for the base with the adapter merged into its unquantized weights; the difference is told."
    )
    overwrite_output_dir: bool = option(False, help="Remove another run that --output_dir holds.")
    accept_other_code: bool = option(
        False, help="Resume a run although this project or a library has changed since it was started."
    )


@dataclass
class CommonSftArguments:
    """The most used of trl.SFTConfig and transformers.TrainingArguments; `--help_all` shows the rest."""

    output_dir: str = option("runs/<run_name>", help="Folder of the run.")
    run_name: str = option("<model>-<data>-s<seed>", help="Name of the run.")
    max_length: int = option(
        None, help="Most tokens of an example, or of a packed row. Default: the model's positions, at most 1024."
    )
    completion_only_loss: bool = option(
        None, help="Whether prompts count in no loss. Default: True where there are prompts; both losses are evaluated."
    )
    packing: bool = option(False, help="Put several examples into a row of --max_length tokens, unseen by one another.")
    padding_free: bool = option(False, help="Join the examples of a batch instead of padding them.")
    num_train_epochs: float = option(3.0, help="Passes over the training split, in whole updates.")
    max_steps: int = option(-1, help="Updates to make; overrides --num_train_epochs.")
    per_device_train_batch_size: int = option(8, help="Examples (or packed rows) of a process's batch.")
    gradient_accumulation_steps: int = option(1, help="Batches of an update.")
    learning_rate: float = option(1e-4, help="Peak learning rate of AdamW.")
    lr_scheduler_type: str = option("linear", help="Schedule: linear, cosine, constant, constant_with_warmup, ...")
    warmup_steps: float = option(0, help="Updates of warm-up, or their share if below 1.")
    weight_decay: float = option(0.0, help="Weight decay of AdamW.")
    eval_strategy: str = option("no", help="no, steps or epoch.")
    eval_steps: float = option(None, help="Updates between evaluations, or their share if below 1.")
    save_steps: float = option(500, help="Updates between checkpoints, or their share if below 1.")
    logging_steps: float = option(10, help="Updates between log lines, or their share if below 1.")
    seed: int = option(42, help="Seed of the adapter's weights and of dropout.")
    data_seed: int = option(None, help="Seed of the order of the examples. Default: --seed.")
    bf16: bool = option(False, help="Mixed precision; for GPUs that have it.")
    report_to: str = option("tensorboard", help="tensorboard, wandb, trackio, none.")
    push_to_hub: bool = option(False, help="Push the adapter or model to the Hub; see --hub_model_id, --hub_strategy.")
    resume_from_checkpoint: str = option(
        None, help="A checkpoint folder. Default: the last one, where --output_dir holds this very run; False: never."
    )


def check_sft(pair_args: PairArguments, adapter_args: AdapterArguments) -> None:
    """Refuse what means nothing, before anything is loaded.

    Raises:
        UsageError: for the first of them.

    >>> check_sft(PairArguments(), AdapterArguments(model_name_or_path="runs/demo"))
    Traceback (most recent call last):
    lm_trials.console.UsageError: no data set is named; give --dataset_name NAME_OR_PATH
    """
    if not adapter_args.model_name_or_path:
        raise UsageError(
            "no model is named; give --model_name_or_path RUN_OR_MODEL, to begin from scratch train_gpt2.py"
        )
    if not pair_args.dataset_name:
        raise UsageError("no data set is named; give --dataset_name NAME_OR_PATH")
    if pair_args.validation_split_percentage is not None:
        validation_from(pair_args.validation_split_percentage)
    if pair_args.max_eval_samples is not None and pair_args.max_eval_samples < 1:
        raise UsageError(f"--max_eval_samples {pair_args.max_eval_samples} is too few; give at least 1")
    if not any(name.strip() for given in adapter_args.lora_target_modules for name in given.split(",")):
        raise UsageError("--lora_target_modules names no layer; give names as q_proj v_proj, or all-linear")
    if not adapter_args.full_finetune:
        return
    for flag in ("load_in_8bit", "load_in_4bit"):
        if getattr(adapter_args, flag):
            raise UsageError(f"--full_finetune and --{flag}: quantized weights cannot be trained; drop one of them")
    for flag in ("adapter_name_or_path", "merge_output", "use_dora", "use_rslora"):
        if getattr(adapter_args, flag):
            raise UsageError(f"--full_finetune and --{flag}: there is no adapter then; drop one of them")
