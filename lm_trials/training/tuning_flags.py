"""Flags of `lm-trials tune`, and the common flags of trl's `SFTConfig` for `--help`; no torch."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from lm_trials.console import UsageError
from lm_trials.flags import option
from lm_trials.shared_flags import Quantization
from lm_trials.training.flags import RATE, CommonTrainingArguments, SavedArguments
from lm_trials.training.order_flags import DataOrdering, check_order


@dataclass
class PairData:
    """The training data."""

    flag_group: ClassVar[str] = "data"

    dataset_name: str = option(
        "",
        required="NAME_OR_PATH",
        help="A prepared data set in --data_cache_dir, else a file or folder, else a Hub data set, with columns prompt "
        "and completion, messages, or text; for lm-trials align prompt, chosen and rejected, or prompt.",
    )
    dataset_config_name: str | None = option(None, help="Configuration of a Hub data set, or part of a folder.")
    validation_split_percentage: float | None = option(
        None, above=0, most=50, help="Percentage held out as the validation split where there is none, by hash."
    )
    data_cache_dir: str = option("data", filled=True, help="Folder of prepared data sets.")
    prompt_layout: Literal["auto", "instruct", "chat", "text"] = option(
        "auto",
        help="instruct: [EOS] prompt [BOS] completion [EOS]; chat: the tokenizer's chat template; text: no prompts; "
        "auto: chat for conversations or a tokenizer with a template, else instruct.",
    )
    overlong: Literal["drop", "cut"] = option("drop", help="Drop or cut examples longer than --max_length.")
    max_eval_samples: int | None = option(500, least=1, help="Validation examples to evaluate; None: all.")


@dataclass
class PairArguments(PairData, DataOrdering):
    """The training data, and its order."""

    flag_group: ClassVar[str] = "data"


@dataclass
class Adapter(Quantization):
    """The base model and its adapter."""

    flag_group: ClassVar[str] = "model"

    model_name_or_path: str | None = option(
        None,
        aliases=["--model_dir"],
        required="RUN_OR_MODEL",
        why="lm-trials train trains from scratch",
        help="Base model: a run, a checkpoint, a model folder or a Hub name.",
    )
    adapter_name_or_path: str | None = option(None, help="Initial adapter, of the same base. Default: a new one.")
    dtype: Literal["float32", "bfloat16", "float16"] = option("float32", help="Number format of the base's weights.")
    full_finetune: bool = option(
        False,
        not_with=("load_in_8bit", "load_in_4bit", "adapter_name_or_path", "merge_output", "use_dora", "use_rslora"),
        why="it trains the base's unquantized weights",
        help="Train all weights instead of an adapter.",
    )
    lora_r: int = option(8, least=1, help="Rank of the adapter.")
    lora_alpha: float = option(16.0, above=0, help="The adapter is scaled by alpha / r.")
    lora_dropout: float = option(0.0, least=0, below=1, help="Dropout on the adapter's input.")
    lora_target_modules: list[str] = option(
        ["all-linear"],
        filled=True,
        distinct=True,
        help="Layers with adapters, as q_proj v_proj; or all-linear; or default: PEFT's of the model type.",
    )
    # peft 0.21 and bitsandbytes 0.50: the second update finds no scales (`state.SCB` is None).
    use_dora: bool = option(
        False,
        not_with="load_in_8bit",
        why="it fails on an 8-bit base after one update",
        help="Weight-decomposed LoRA; not on an 8-bit base.",
    )
    use_rslora: bool = option(False, help="Scale the adapter by alpha / sqrt(r).")
    merge_output: str | None = option(
        None, output=True, help="Folder for the adapter merged into its unquantized base."
    )
    overwrite_output_dir: bool = option(False, help="Replace another run in --output_dir.")
    accept_other_code: bool = option(False, help="Resume although the code or a library has changed.")

    @property
    def target_modules(self) -> tuple[str, ...]:
        """The names of `--lora_target_modules`, separated by spaces or commas."""
        return tuple(name for given in self.lora_target_modules for name in given.split(",") if name.strip())


@dataclass
class AdapterArguments(Adapter, SavedArguments):
    """The base model and its adapter, and what is saved."""


def check_tuning(pair_args: PairArguments, adapter_args: AdapterArguments) -> None:
    """Check the adapter's layers and the order of the data; see `check_targets` and `order_flags.check_order`."""
    check_targets(adapter_args)
    check_order(pair_args)


def check_targets(adapter_args: Adapter) -> None:
    """Refuse `--lora_target_modules` without layers, or with layers beside all-linear or default.

    >>> check_targets(Adapter(lora_target_modules=["all-linear", "q_proj"]))
    Traceback (most recent call last):
    lm_trials.console.UsageError: --lora_target_modules all-linear q_proj: give all-linear alone, or layers
    """
    names = adapter_args.target_modules
    if not names:
        raise UsageError("--lora_target_modules names no layer; give layers, for example q_proj v_proj, or all-linear")
    alone = [name for name in names if name in ("all-linear", "default")]
    if alone and len(names) > 1:
        raise UsageError(f"--lora_target_modules {' '.join(names)}: give {alone[0]} alone, or layers")


@dataclass
class CommonSftArguments(CommonTrainingArguments):
    """Common flags of trl.SFTConfig and transformers.TrainingArguments; `--help_all` shows all."""

    flag_group: ClassVar[str] = "training"

    max_length: int = option(
        None, least=2, help="Maximum tokens of an example or packed row. Default: the model's positions, at most 1024."
    )
    completion_only_loss: bool = option(
        None, help="Leave prompts out of the loss. Default: True where there are prompts. Both losses are evaluated."
    )
    packing: bool = option(False, help="Pack examples into rows of --max_length tokens, without attention across them.")
    padding_free: bool = option(False, help="Concatenate the examples of a batch instead of padding them.")
    per_device_train_batch_size: int = option(8, least=1, help="Examples (or packed rows) in a batch of each process.")
    per_device_eval_batch_size: int = option(8, least=1, help="Examples in a batch of each process in evaluation.")
    learning_rate: float = option(1e-4, **RATE, help="Peak learning rate of AdamW.")
