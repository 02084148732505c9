"""The flags of `lm_trials.evaluation.constraints`; no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lm_trials.console import UsageError
from lm_trials.evaluation.sampling import Mode, Sampling
from lm_trials.flags import option
from lm_trials.shared_flags import DataFolder, Device, Quantization, TokenSampling


@dataclass
class ConstraintArguments(DataFolder, TokenSampling, Quantization, Device):
    """Who writes for which prompts, and how the stories are judged."""

    model_name_or_path: list[str] = option(
        [],
        aliases=["--model", "--model_dir"],
        required="RUN_OR_CHECKPOINT",
        distinct=True,
        help="Run, checkpoint, adapter or Hub model; several are replicates.",
    )
    tokenizer_name: str | None = option(None, help="Another tokenizer than the one beside the model.")
    dataset_name: str | None = option(
        None, not_with="prompts", help="Data set of pairs, made with prepare_tinystories.py instruct."
    )
    dataset_split: Literal["train", "validation", "test"] = option("validation", help="Split of the prompts.")
    prompts: str | None = option(None, help="Prompts of a YAML or text file instead: length and end are scored.")
    num_prompts: int = option(100, least=1, help="Prompts, from the start of the split.")
    seeds: list[str] = option(["0"], help="Seeds of the sampling, as 0,1,2: a story of each for each prompt.")
    mode: Mode | None = option(
        None, help="How the model is asked. Default: as it was trained, else instruct, with --prompts completion."
    )
    feature_judge: Literal["detector", "classifier"] = option(
        "detector",
        needs={"classifier": "judge_corpus"},
        help="Who says which features a story has: the detectors, or classifiers of --judge_corpus.",
    )
    judge_corpus: str | None = option(None, help="Prepared corpus with features, to train and to measure the judge on.")
    coverage: str | None = option(None, help="Prepared data set in whose train split the prompts' words are counted.")
    max_new_tokens: int | None = option(
        None, least=1, help="Most tokens of a story. Default: what fits the model, at most 400."
    )
    batch_size: int = option(16, least=1, help="Stories written at once; changes speed and memory, no result.")
    seed: int = option(0, least=0, help="Seed of the intervals, of the prompts judged against, and of the classifiers.")
    output_dir: str | None = option(
        None, help="Folder of the results. Default: <model>/eval/constraints-<prompts>-<mode>, of several under out."
    )


def sampling_of(args: ConstraintArguments) -> tuple[Sampling, list[int]]:
    """Return the sampling and its seeds.

    Raises:
        UsageError: without prompts, or for seeds that are no different numbers.

    >>> sampling_of(ConstraintArguments(["m"], dataset_name="d", seeds=["0,2"]))[1]
    [0, 2]
    """
    if not args.dataset_name and not args.prompts:
        raise UsageError("no prompts; give --dataset_name, a data set of pairs, or --prompts, a file")
    seeds = _seeds(args.seeds)
    if args.temperature == 0 and len(seeds) > 1:
        raise UsageError("--temperature 0 writes the same story whatever the seed; give one of --seeds")
    return Sampling(args.temperature, args.top_k, args.top_p, args.seed), seeds


def _seeds(values: list[str]) -> list[int]:
    words = [word for value in values for word in value.split(",") if word]
    if not words or not all(word.isdecimal() for word in words) or len(set(words)) < len(words):
        raise UsageError(f"--seeds {' '.join(values)}: give different whole numbers, as 0,1,2")
    return [int(word) for word in words]
