"""The flags of `sft_lora.py` that need no torch: ours, and those of trl's `SFTConfig` that `--help` shows."""

from dataclasses import dataclass
from typing import Literal

from lm_trials.console import UsageError
from lm_trials.flags import option
from lm_trials.shared_flags import Quantization
from lm_trials.training.flags import CommonTrainingArguments


@dataclass
class PairArguments:
    """What is learned."""

    dataset_name: str = option(
        "",
        required="NAME_OR_PATH",
        help="A prepared set of pairs in --data_cache_dir, else a file or folder, else a Hub data set; its columns are "
        "prompt and completion, messages, or text.",
    )
    dataset_config_name: str | None = option(None, help="Configuration of a Hub data set, or part of a folder.")
    validation_split_percentage: float | None = option(
        None,
        above=0,
        most=50,
        help="Share of a train split without a validation split that becomes one, by hash of the row.",
    )
    data_cache_dir: str = option("data", help="Folder of prepared data sets.")
    prompt_layout: Literal["auto", "instruct", "chat", "text"] = option(
        "auto",
        help="instruct: [EOS] prompt [BOS] completion [EOS]; chat: the tokenizer's chat template; text: of a set "
        "without prompts; auto: chat where the tokenizer has a template or rows are conversations, else instruct.",
    )
    overlong: Literal["drop", "cut"] = option(
        "drop", help="What becomes of examples longer than --max_length; how many is told."
    )
    max_eval_samples: int | None = option(500, least=1, help="Examples of the validation split that are evaluated.")


@dataclass
class AdapterArguments(Quantization):
    """What learns it."""

    model_name_or_path: str | None = option(
        None,
        aliases=["--model_dir"],
        required="RUN_OR_MODEL",
        why="train_gpt2.py trains from scratch",
        help="The base: a run, a checkpoint, a model folder or Hub name.",
    )
    adapter_name_or_path: str | None = option(
        None, help="Begin with the weights of this adapter, made on the same base."
    )
    dtype: Literal["float32", "bfloat16", "float16"] = option("float32", help="Number format of the base's weights.")
    full_finetune: bool = option(
        False,
        not_with=("load_in_8bit", "load_in_4bit", "adapter_name_or_path", "merge_output", "use_dora", "use_rslora"),
        why="it trains the base's own, unquantized weights",
        help="Train all weights instead of an adapter, for the comparison.",
    )
    lora_r: int = option(8, least=1, help="Rank of the adapter.")
    lora_alpha: float = option(16.0, above=0, help="The adapter's product is scaled by alpha / r.")
    lora_dropout: float = option(0.0, least=0, below=1, help="Dropout before the adapter.")
    lora_target_modules: list[str] = option(
        ["all-linear"],
        filled=True,
        distinct=True,
        help="Names of the layers that carry adapters, as q_proj v_proj; or all-linear.",
    )
    # peft 0.21 and bitsandbytes 0.50: the second update finds no scales (`state.SCB` is None).
    use_dora: bool = option(
        False,
        not_with="load_in_8bit",
        why="it fails on an 8-bit base after one update",
        help="Weight-decomposed LoRA; not on an 8-bit base.",
    )
    use_rslora: bool = option(False, help="Scale by alpha / sqrt(r).")
    merge_output: str | None = option(
        None, help="Folder for the base with the adapter merged into its unquantized weights; the difference is told."
    )
    overwrite_output_dir: bool = option(False, help="Remove another run that --output_dir holds.")
    accept_other_code: bool = option(
        False, help="Resume a run although this project or a library has changed since it was started."
    )

    @property
    def target_modules(self) -> tuple[str, ...]:
        """The names of `--lora_target_modules`, also those with commas between."""
        return tuple(name for given in self.lora_target_modules for name in given.split(",") if name.strip())


def check_targets(pair_args: PairArguments, adapter_args: AdapterArguments) -> None:
    """Refuse `--lora_target_modules` without a name, or with all-linear beside names.

    >>> check_targets(PairArguments(), AdapterArguments(lora_target_modules=["all-linear", "q_proj"]))
    Traceback (most recent call last):
    lm_trials.console.UsageError: --lora_target_modules all-linear q_proj: give all-linear alone, or names
    """
    names = adapter_args.target_modules
    if not names:
        raise UsageError("--lora_target_modules names no layer; give names as q_proj v_proj, or all-linear")
    if "all-linear" in names and len(names) > 1:
        raise UsageError(f"--lora_target_modules {' '.join(names)}: give all-linear alone, or names")


@dataclass
class CommonSftArguments(CommonTrainingArguments):
    """The most used of trl.SFTConfig and transformers.TrainingArguments; `--help_all` shows the rest."""

    max_length: int = option(
        None,
        least=2,
        help="Most tokens of an example, or of a packed row. Default: the model's positions, at most 1024.",
    )
    completion_only_loss: bool = option(
        None, help="Whether prompts count in no loss. Default: True where there are prompts; both losses are evaluated."
    )
    packing: bool = option(False, help="Put several examples into a row of --max_length tokens, unseen by one another.")
    padding_free: bool = option(False, help="Join the examples of a batch instead of padding them.")
    learning_rate: float = option(1e-4, least=0, help="Peak learning rate of AdamW.")
    push_to_hub: bool = option(False, help="Push the adapter or model to the Hub; see --hub_model_id, --hub_strategy.")
