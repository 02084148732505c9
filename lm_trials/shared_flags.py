"""Flags that several commands have; no torch.  They follow the command's own flags in `--help`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from lm_trials.console import UsageError
from lm_trials.flags import SEED, option


@dataclass(kw_only=True)
class DataFolder:
    """Where prepared data lies."""

    flag_group: ClassVar[str] = "data"

    data_cache_dir: str = option(
        "data", filled=True, help="Folder of prepared corpora, data sets, token stores and tokenizers."
    )


@dataclass(kw_only=True)
class DataReading(DataFolder):
    """How a data set is read that is not prepared."""

    flag_group: ClassVar[str] = "data"

    dataset_config_name: str | None = option(
        None, help="Configuration of a Hub data set or part of a folder; a+b is a mixture, as is --dataset_name a+b."
    )
    text_column: str | None = option(None, help="Column that holds the text. Default: story, else text.")
    streaming: Literal["True", "CacheStream", "False"] = option(
        "False",
        help="False: download and prepare first; True: stream without preparing; CacheStream: prepare, then stream. "
        "Results are the same.",
    )


@dataclass(kw_only=True)
class Quantization:
    """How a model's weights are stored."""

    flag_group: ClassVar[str] = "model"

    load_in_8bit: bool = option(
        False,
        not_with="load_in_4bit",
        help="Quantize the weights (of an adapter: its base) to 8 bits (LLM.int8).",
    )
    load_in_4bit: bool = option(False, help="Quantize the weights (of an adapter: its base) to 4 bits (nf4).")


@dataclass(kw_only=True)
class Device:
    """Where a model runs."""

    flag_group: ClassVar[str] = "model"

    use_cpu: bool = option(False, help="Use the CPU although there is a GPU.")


@dataclass(kw_only=True)
class FeatureJudge:
    """How a story's features are judged."""

    flag_group: ClassVar[str] = "judges"

    feature_judge: Literal["detector", "classifier"] = option(
        "detector",
        needs={"classifier": "judge_corpus"},
        help="Judge of the stories' features: the detectors, or classifiers trained on --judge_corpus.",
    )
    judge_corpus: str | None = option(
        None, help="Corpus with features: trains the classifiers, which also judge beside the detectors."
    )


@dataclass(kw_only=True)
class TokenSampling:
    """How the tokens of an answer are chosen."""

    flag_group: ClassVar[str] = "sampling"

    temperature: float = option(0.7, least=0, help="Sampling temperature; 0 takes the likeliest token each time.")
    top_k: int = option(0, least=0, help="Sample among the K likeliest tokens; 0: all.")
    top_p: float = option(1.0, above=0, most=1, help="Sample among the likeliest tokens of this summed probability.")


def read_seeds(given: list[str]) -> list[int]:
    """Return the sampling seeds of `--seeds 0,1 2`.

    Raises:
        UsageError: for seeds that are not distinct whole numbers.

    >>> read_seeds(["0,2", "1"])
    [0, 2, 1]
    """
    words = [word.strip() for value in given for word in value.split(",") if word.strip()]
    seeds = [int(word) for word in words if word.isdecimal() and len(word) < 11 and int(word) <= SEED["most"]]
    if not seeds or len({*seeds}) < len(words):
        raise UsageError(f"--seeds {' '.join(given)}: give distinct whole numbers below 2^32, such as 0,1,2")
    return seeds
