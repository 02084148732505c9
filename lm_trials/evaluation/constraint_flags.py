"""The flags of `lm_trials.evaluation.constraints`; no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lm_trials.console import UsageError
from lm_trials.evaluation.sampling import Mode, Sampling
from lm_trials.flags import SEED, option
from lm_trials.shared_flags import DataFolder, Device, FeatureJudge, Quantization, TokenSampling, read_seeds


@dataclass
class ConstraintArguments(DataFolder, TokenSampling, FeatureJudge, Quantization, Device):
    """Which models generate for which prompts, and how the stories are judged."""

    model_name_or_path: list[str] = option(
        [],
        aliases=["--model", "--model_dir"],
        required="RUN_OR_CHECKPOINT",
        distinct=True,
        help="Run, checkpoint, adapter or Hub model; several are replicates.",
    )
    tokenizer_name: str | None = option(None, help="Tokenizer to use instead of the model's own.")
    dataset_name: str | None = option(
        None, not_with="prompts", help="Data set of pairs, made with `lm-trials prepare instruct`."
    )
    dataset_split: Literal["train", "validation", "test"] = option("validation", help="Split of the prompts.")
    prompts: str | None = option(None, help="YAML or text file of prompts; only length and end are scored.")
    num_prompts: int = option(100, least=1, help="Number of prompts, from the start of the split.")
    seeds: list[str] = option(["0"], help="Sampling seeds, such as 0,1,2: a story per prompt and seed.")
    mode: Mode | None = option(
        None, help="How the model is prompted. Default: as trained, else instruct, with --prompts completion."
    )
    coverage: str | None = option(None, help="Prepared data set in whose train split the prompts' words are counted.")
    base_name_or_path: str | None = option(
        None,
        filled=True,
        group="judges",
        help="Model whose loss judges the stories; start: the model that each run's lineage starts from.",
    )
    max_new_tokens: int | None = option(
        None, least=1, help="Maximum tokens per story. Default: what fits the positions, up to 400."
    )
    batch_size: int = option(16, least=1, help="Stories per batch; no effect on results.")
    seed: int = option(0, **SEED, help="Seed of the intervals, of the other prompts, and of the classifiers.")
    output_dir: str | None = option(
        None,
        output=True,
        help="Folder of the results. Default: <model>/eval/constraints-<prompts>-<mode>; several: under out.",
    )


def sampling_of(args: ConstraintArguments) -> tuple[Sampling, list[int]]:
    """Return the sampling and its seeds.

    Raises:
        UsageError: without prompts, or for seeds that are not distinct numbers.

    >>> sampling_of(ConstraintArguments(["m"], dataset_name="d", seeds=["0,2"]))[1]
    [0, 2]
    """
    if not args.dataset_name and not args.prompts:
        raise UsageError("no prompts; give --dataset_name, a data set of pairs, or --prompts, a file")
    seeds = read_seeds(args.seeds)
    if args.temperature == 0 and len(seeds) > 1:
        raise UsageError("--temperature 0 gives the same story for every seed; give one number to --seeds")
    return Sampling(args.temperature, args.top_k, args.top_p, args.seed), seeds
