"""The flags of `eval_checkpoint.py`; no torch."""

from dataclasses import dataclass
from typing import Literal

from lm_trials.console import UsageError, did_you_mean
from lm_trials.flags import option

SLICES = ("features", "source")


@dataclass
class EvaluationArguments:
    """Which models are evaluated on which stories, and how."""

    model_name_or_path: list[str] = option(
        [], aliases=["--model_dir"], help="Run, checkpoint, model folder or Hub name; several make a matrix."
    )
    dataset_name: list[str] = option(
        ["generated"], help="A prepared corpus, else a file or folder, else a Hub data set; several make a matrix."
    )
    dataset_config_name: str | None = option(
        None, help="Configuration of a Hub data set or part of a folder; a+b mixes."
    )
    data_mix: str | None = option(None, help="Shares of the parts a+b, as .3,.7. Default: equal.")
    dataset_split: str | None = option(
        None, help="Split. Default: validation of a prepared corpus or Hub data set; a path is evaluated whole."
    )
    streaming: Literal["CacheStream", "True", "False"] = option(
        "True", help="Hub data: stream it (True), or download it first (CacheStream, False)."
    )
    data_cache_dir: str = option("data", help="Folder of prepared corpora.")
    text_column: str | None = option(None, help="Column that holds the story. Default: story, else text.")
    tokenizer_name: str | None = option(None, help="Another tokenizer than the one beside the model.")
    max_eval_samples: int | None = option(None, help="Stories evaluated, from the start; default all.")
    layout: Literal["per_story", "packed"] = option(
        "per_story", help="Each story by itself, or all joined and cut into windows as in pretraining."
    )
    block_size: int | None = option(None, help="Window, in tokens. Default: the model's positions, at most 1024.")
    attention_across_documents: bool = option(True, help="In packed form: whether a story sees the one before it.")
    append_eos: bool | None = option(None, help="Score EOS after each story. Default: as the model was trained.")
    per_device_eval_batch_size: int = option(16, help="Windows of a batch; changes speed and memory, no result.")
    by: list[str] = option([], help="Slices: features, source.")
    all_checkpoints: bool = option(False, help="Evaluate every checkpoint of a run, and its final model.")
    generate: int = option(0, help="Continue this many stories and score them against the records' own.")
    score_features: bool = option(
        False, help="Let the model write for the prompts of a set, and say how often it writes the features asked for."
    )
    num_generations: int = option(256, help="Stories of --score_features, of each set.")
    max_new_tokens: int = option(400, help="Most tokens of such a story.")
    prompt_share: float = option(0.4, help="Share of a story's tokens that is given before the model goes on.")
    temperature: float | None = option(
        None, help="Sampling temperature; 0 is greedy. Default: 0 for --generate, 1 for --score_features."
    )
    seed: int = option(0, help="Seed of the intervals and of the sampling.")
    output_dir: str | None = option(None, help="Folder of the results. Default: <model>/eval/<data set>.")
    tables_dir: str = option("out/tables", help="Folder of the tables of --generate.")
    matrix_dir: str = option(
        "out/tables/matrix", help="Folder of matrix.csv, .json and .png, written when several pairs are evaluated."
    )
    use_cpu: bool = option(False, help="Use the CPU where there is a GPU; without one it is used anyway.")


def check_arguments(args: EvaluationArguments) -> None:
    """Refuse values that mean nothing, before anything is loaded.

    Raises:
        UsageError: for the first of them.

    >>> check_arguments(EvaluationArguments(by=["feature"]))
    Traceback (most recent call last):
    lm_trials.console.UsageError: --by feature: did you mean features? valid: features, source
    """
    for name in args.by:
        if name not in SLICES:
            raise UsageError(f"--by {name}: {did_you_mean(name, SLICES)}")
    for flag in ("max_eval_samples", "per_device_eval_batch_size"):
        value = getattr(args, flag)
        if value is not None and value < 1:
            raise UsageError(f"--{flag} {value} leaves nothing to evaluate; give at least 1")
    if args.seed < 0:
        raise UsageError(f"--seed {args.seed} is no seed; give 0 or more")
    if args.generate < 0:
        raise UsageError(f"--generate {args.generate} is no number of stories; give 0 or more")
    if not 0 < args.prompt_share < 1:
        raise UsageError(f"--prompt_share {args.prompt_share:g} leaves nothing to show or to write; give 0 to 1")
    if args.num_generations < 1 or args.max_new_tokens < 1:
        raise UsageError(
            f"--num_generations {args.num_generations} --max_new_tokens {args.max_new_tokens}: both must be at least 1"
        )
    if args.temperature is not None and args.temperature < 0:
        raise UsageError(f"--temperature {args.temperature:g} is no temperature; give 0 (greedy) or more")
