"""Flags of rewards; no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from lm_trials.evaluation.sampling import Mode
from lm_trials.flags import SEED, option
from lm_trials.shared_flags import DataFolder, Device, FeatureJudge, Quantization, TokenSampling


@dataclass(kw_only=True)
class RewardFunctions(FeatureJudge):
    """What a story is rewarded for."""

    flag_group: ClassVar[str] = "rewards"

    reward_funcs: list[str] = option(
        [],
        required="NAME ...",
        distinct=True,
        help="Rewards: words, features, feature:NAME, length:N, ends, or FILE.py:NAME, a function of yours.",
    )


@dataclass(kw_only=True)
class WeightedRewards(RewardFunctions):
    """The rewards with their weights, of which trl's configuration has its own flag."""

    flag_group: ClassVar[str] = "rewards"

    reward_weights: list[float] = option([], help="Weight of each reward. Default: 1 each.")


@dataclass
class RewardArguments(DataFolder, WeightedRewards, Device):
    """Score a data set's own stories and texts that cheat, by each reward and by judges that no reward is made of."""

    dataset_name: str = option("", required="PAIRS", help="Data set of pairs, made with `lm-trials prepare instruct`.")
    dataset_split: Literal["train", "validation", "test"] = option("validation", help="Split of the prompts.")
    num_prompts: int = option(100, least=2, help="Number of prompts, from the start of the split.")
    base_name_or_path: str | None = option(
        None, filled=True, group="judges", help="Model whose loss judges the texts, such as the one to fine-tune."
    )
    seed: int = option(0, **SEED, help="Seed of the intervals, of the shuffled words, and of the classifiers.")
    output_dir: str = option("out/rewards", output=True, help="Folder of rewards.csv.")


@dataclass
class PreferenceArguments(DataFolder, WeightedRewards, TokenSampling, Quantization, Device):
    """Sample several stories for each prompt from a run; pair the best with the worst by rewards."""

    model_name_or_path: str = option("", required="RUN", help="Run, checkpoint, adapter or Hub model to sample from.")
    tokenizer_name: str | None = option(None, help="Tokenizer to use instead of the model's own.")
    dataset_name: str = option("", required="PAIRS", help="Data set with the prompts, prepared with its splits.")
    output_name: str | None = option(
        None, folder_name=True, help="Name of the new data set. Default: <data set>-preferences."
    )
    num_samples: int = option(4, least=2, help="Stories sampled for each prompt.")
    margin: float = option(0.1, above=0, help="Least difference of the summed rewards of the best and the worst story.")
    num_prompts: int | None = option(None, least=1, help="Most prompts of each split, from its start. Default: all.")
    mode: Mode | None = option(None, help="How the model is prompted. Default: as trained, else instruct.")
    max_new_tokens: int | None = option(
        None, least=1, help="Maximum tokens per story. Default: what fits the positions, up to 400."
    )
    batch_size: int = option(32, least=1, help="Stories per batch; no effect on results.")
    seed: int = option(0, **SEED, help="Seed of the samples and of the classifiers.")

    @property
    def folder(self) -> Path:
        """The folder of the data set of preferences."""
        return Path(self.data_cache_dir) / (self.output_name or f"{Path(self.dataset_name).name}-preferences")
