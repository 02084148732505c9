"""Flags of the diversity probe; no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lm_trials.console import UsageError
from lm_trials.files import LONGEST_NAME, check_writable, plain_name
from lm_trials.flags import SEED, option
from lm_trials.shared_flags import DataReading, Device


@dataclass
class DiversityArguments(DataReading, Device):
    """Which texts are measured, by which model, and how."""

    model_name_or_path: str = option(
        "gpt2", aliases=["--model_dir"], help="The probe network: a run, a model folder or a Hub name."
    )
    tokenizer_name: str | None = option(None, help="Tokenizer to use instead of the model's own.")
    dataset_name: list[str] = option(
        [],
        distinct=True,
        help="Prepared corpus, file, folder or Hub data set; several are compared. Default: the data of the model's "
        "run.",
    )
    data_mix: str | None = option(
        None, help="Shares, for example .3,.7: of the parts a+b, or of several data sets to measure their mixture too."
    )
    dataset_split: str | None = option(
        None, help="Split. Default: train of a prepared corpus or Hub data set, all of a path."
    )
    text_separator: str = option("<|endoftext|>", help="Separator of texts in a text file.")
    num_batches: int = option(
        30,
        least=3,
        why="an interval over batches needs 3",
        help="Batches of each data set, the sample size. The paper uses 200 to 600; 30 suit a CPU.",
    )
    num_control_batches: int = option(
        10, least=3, unless=0, why="an interval needs 3", help="Batches of each control; 0 for no controls."
    )
    batch_size: int = option(
        32, least=1, help="Texts per batch. The paper uses 512; the coefficient decreases with it."
    )
    max_length: int = option(
        128,
        least=3,
        why="BOS and two tokens",
        help="Longest text in tokens, with BOS; longer ones are truncated, as in the paper.",
    )
    finetune_steps: int = option(
        10, least=0, help="Updates of the final layer on each batch, each with the whole batch."
    )
    finetune_learning_rate: float = option(1e-3, least=0, help="Learning rate of these updates (AdamW).")
    # A batch of 32 generated stories is at distance 0.009 from itself with 4 draws of signs, and 0.033 with 4 draws of
    # tokens (0.019 with 16); different batches are 0.07 apart.
    fisher_draws: int = option(
        4,
        least=2,
        why="the noise is estimated from two halves",
        help="Random draws of each text's gradient, an even number: two halves estimate the noise.",
    )
    fisher_drawing: Literal["signs", "tokens"] = option(
        "signs", help="tokens: draw tokens from the model, as in the paper; signs: the same expectation, less noise."
    )
    random_weights: bool = option(False, help="Also measure with random weights of the same shape, as a control.")
    text_only: bool = option(False, help="Only compression and distinct n-grams, which need no model.")
    words_per_batch: int | None = option(
        None,
        least=3,
        why="for a 3-gram",
        help="Words of each batch for compression and n-grams. Default: those of the shortest batch.",
    )
    seed: int = option(0, **SEED, help="Seed of batches, random draws and controls.")
    output_dir: str | None = option(
        None, output=True, help="Folder of the results. Default: <model>/probes/diversity/<data sets>."
    )

    def folder(self) -> Path:
        """Return the folder of the results: inside a local model, else under `out`."""
        if self.output_dir:
            return Path(self.output_dir)
        names = "+".join(map(label_of, self.dataset_name))
        if self.dataset_config_name:
            names += f"-{self.dataset_config_name}"
        local = Path(self.model_name_or_path)
        place = local / "probes" if not self.text_only and local.is_dir() else Path("out")
        return place / "diversity" / plain_name(names, LONGEST_NAME)


ARGUMENTS = (DiversityArguments,)


def label_of(name: str) -> str:
    """Return a data set's name in tables: its file or folder name, or the Hub name without owner.

    >>> label_of("texts/pubmed.jsonl")
    'pubmed'
    """
    return Path(name).name.split(".")[0] or name


def check_arguments(args: DiversityArguments) -> None:
    """Raise a UsageError for the first invalid combination of values, before anything is loaded.

    >>> check_arguments(DiversityArguments(fisher_draws=3))
    Traceback (most recent call last):
    lm_trials.console.UsageError: --fisher_draws 3 must be even; give 2 or 4
    """
    if args.fisher_draws % 2:
        raise UsageError(f"--fisher_draws {(n := args.fisher_draws)} must be even; give {n - 1} or {n + 1}")
    if len(args.dataset_name) > 1 and args.dataset_config_name:
        raise UsageError(
            f"--dataset_config_name {args.dataset_config_name} needs one --dataset_name, not {len(args.dataset_name)}; "
            "name one data set, or the paths of its parts as several data sets"
        )
    check_writable("--output_dir", args.folder())
