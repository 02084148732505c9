"""The flags of `lm_trials.evaluation.constraints`; no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lm_trials.console import UsageError
from lm_trials.evaluation.sampling import Mode, Sampling
from lm_trials.flags import option


@dataclass
class ConstraintArguments:
    """Who writes for which prompts, and how the stories are judged."""

    model_name_or_path: list[str] = option(
        [], aliases=["--model", "--model_dir"], help="Run, checkpoint, adapter or Hub model; several are replicates."
    )
    tokenizer_name: str | None = option(None, help="Another tokenizer than the one beside the model.")
    dataset_name: str | None = option(None, help="Data set of pairs, made with prepare_tinystories.py instruct.")
    dataset_split: Literal["train", "validation", "test"] = option("validation", help="Split of the prompts.")
    data_cache_dir: str = option("data", help="Folder of prepared data sets.")
    prompts: str | None = option(None, help="Prompts of a YAML or text file instead: length and end are scored.")
    num_prompts: int = option(100, help="Prompts, from the start of the split.")
    seeds: list[str] = option(["0"], help="Seeds of the sampling, as 0,1,2: a story of each for each prompt.")
    mode: Mode | None = option(
        None, help="How the model is asked. Default: as it was trained, else instruct, with --prompts completion."
    )
    feature_judge: Literal["detector", "classifier"] = option(
        "detector", help="Who says which features a story has: the detectors, or classifiers of --judge_corpus."
    )
    judge_corpus: str | None = option(None, help="Prepared corpus with features, to train and to measure the judge on.")
    coverage: str | None = option(None, help="Prepared data set in whose train split the prompts' words are counted.")
    max_new_tokens: int | None = option(None, help="Most tokens of a story. Default: what fits the model, at most 400.")
    temperature: float = option(0.7, help="Sampling temperature; 0 takes the likeliest token each time.")
    top_k: int = option(0, help="Sample among this many tokens; 0 is all.")
    top_p: float = option(1.0, help="Sample among the likeliest tokens of this summed probability.")
    batch_size: int = option(16, help="Stories written at once; changes speed and memory, no result.")
    seed: int = option(0, help="Seed of the intervals, of the prompts judged against, and of the classifiers.")
    output_dir: str | None = option(
        None, help="Folder of the results. Default: <model>/eval/constraints-<prompts>-<mode>, of several under out."
    )
    load_in_8bit: bool = option(False, help="Quantize the weights, an adapter's base, to 8 bits.")
    load_in_4bit: bool = option(False, help="Quantize the weights, an adapter's base, to 4 bits (nf4).")
    use_cpu: bool = option(False, help="Use the CPU where there is a GPU; without one it is used anyway.")


def check_arguments(args: ConstraintArguments) -> tuple[Sampling, list[int]]:
    """Refuse values that mean nothing, before anything is loaded; returns the sampling and its seeds.

    Raises:
        UsageError: for the first of them.

    >>> check_arguments(ConstraintArguments(["m"], dataset_name="d", seeds=["0,2"]))[1]
    [0, 2]
    >>> check_arguments(ConstraintArguments(["m"], dataset_name="d", feature_judge="classifier"))
    Traceback (most recent call last):
    lm_trials.console.UsageError: --feature_judge classifier needs records to learn from; give --judge_corpus CORPUS
    """
    if not args.model_name_or_path:
        raise UsageError("no model is named; give --model_name_or_path RUN_OR_CHECKPOINT")
    if twice := sorted({name for name in args.model_name_or_path if args.model_name_or_path.count(name) > 1}):
        raise UsageError(f"--model_name_or_path {twice[0]} is given twice; give it once, with several --seeds")
    if bool(args.dataset_name) == bool(args.prompts):
        raise UsageError("give --dataset_name, a data set of pairs, or --prompts, a file; one of them")
    if args.feature_judge == "classifier" and not args.judge_corpus:
        raise UsageError("--feature_judge classifier needs records to learn from; give --judge_corpus CORPUS")
    for flag in ("num_prompts", "batch_size", "max_new_tokens"):
        value = getattr(args, flag)
        if value is not None and value < 1:
            raise UsageError(f"--{flag} {value} leaves nothing to write; give at least 1")
    seeds = _seeds(args.seeds)
    sampling = Sampling(args.temperature, args.top_k, args.top_p, args.seed)
    sampling.check()
    if args.temperature == 0 and len(seeds) > 1:
        raise UsageError("--temperature 0 writes the same story whatever the seed; give one of --seeds")
    return sampling, seeds


def _seeds(values: list[str]) -> list[int]:
    words = [word for value in values for word in value.split(",") if word]
    if not words or not all(word.isdecimal() for word in words) or len(set(words)) < len(words):
        raise UsageError(f"--seeds {' '.join(values)}: give different whole numbers, as 0,1,2")
    return [int(word) for word in words]
