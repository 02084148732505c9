"""The flags of `probes/diversity.py`; no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lm_trials.console import UsageError
from lm_trials.flags import option
from lm_trials.probing.flags import check_place
from lm_trials.shared_flags import DataReading, Device


@dataclass
class DiversityArguments(DataReading, Device):
    """Which texts are measured by which model, and how."""

    model_name_or_path: str = option(
        "gpt2", aliases=["--model_dir"], help="The probe, one for all: a run, a model folder or a Hub name."
    )
    tokenizer_name: str | None = option(None, help="Another tokenizer than the one beside the model.")
    dataset_name: list[str] = option(
        ["generated"],
        distinct=True,
        help="A prepared corpus, else a file or folder, else a Hub data set; several are compared.",
    )
    data_mix: str | None = option(
        None, help="Shares, as .3,.7: of the parts a+b, or of several data sets, whose mixture is then measured too."
    )
    dataset_split: str | None = option(
        None, help="Split. Default: train of a prepared corpus or Hub data set; a path is read whole."
    )
    text_separator: str = option("<|endoftext|>", help="What stands between two texts of a text file.")
    num_batches: int = option(
        30,
        least=3,
        why="an interval over batches needs 3",
        help="Batches of each data set: the sample size. The paper takes 200 to 600; 30 suit a CPU.",
    )
    num_control_batches: int = option(
        10, least=3, unless=0, why="an interval needs 3", help="Batches of each control; 0: no controls."
    )
    batch_size: int = option(
        32, least=1, help="Texts of a batch. The paper takes 512; the coefficient falls as it grows."
    )
    max_length: int = option(
        128,
        least=3,
        why="a beginning and two tokens",
        help="Tokens of a text, with its beginning mark; the rest is cut off, as in the paper.",
    )
    finetune_steps: int = option(10, least=0, help="Updates of the final layer on each batch, each on the whole batch.")
    finetune_learning_rate: float = option(1e-3, least=0, help="AdamW's learning rate in these updates.")
    fisher_draws: int = option(
        4,
        least=2,
        why="two halves tell the noise",
        help="Draws of the model's own next tokens for each text, even: two halves tell the noise.",
    )
    fisher_drawing: Literal["signs", "tokens"] = option(
        "signs", help="tokens: draw from the model, as the paper; signs: the same expectation with far less noise."
    )
    random_weights: bool = option(False, help="Measure with random weights of the same shape too, as a control.")
    text_only: bool = option(False, help="Only the measures that need no model: compression and distinct n-grams.")
    words_per_batch: int | None = option(
        None,
        least=3,
        why="for a 3-gram",
        help="Words of each batch that those see. Default: as many as the shortest batch has.",
    )
    seed: int = option(0, least=0, help="Seed of the batches, the draws and the controls.")
    output_dir: str | None = option(None, help="Folder of the results. Default: <model>/probes/diversity/<data sets>.")

    @property
    def texts_needed(self) -> int:
        """How many texts each data set must have."""
        return self.num_batches * self.batch_size

    def folder(self) -> Path:
        """Where the results go: beside a local model, else under `out`."""
        if self.output_dir:
            return Path(self.output_dir)
        names = "+".join(Path(name).name.split(".")[0] or name for name in self.dataset_name)
        if self.dataset_config_name:
            names += f"-{self.dataset_config_name}"
        local = Path(self.model_name_or_path).expanduser()
        place = local / "probes" if not self.text_only and local.is_dir() else Path("out")
        return place / "diversity" / names


ARGUMENTS = (DiversityArguments,)


def check_arguments(args: DiversityArguments) -> None:
    """Refuse values that mean nothing, before anything is loaded.

    Raises:
        UsageError: for the first of them.

    >>> check_arguments(DiversityArguments(fisher_draws=3))
    Traceback (most recent call last):
    lm_trials.console.UsageError: --fisher_draws 3 has no two halves; give an even number
    """
    if args.fisher_draws % 2:
        raise UsageError(f"--fisher_draws {args.fisher_draws} has no two halves; give an even number")
    if len(args.dataset_name) > 1 and args.dataset_config_name:
        raise UsageError(
            f"--dataset_config_name {args.dataset_config_name} with {len(args.dataset_name)} data sets: of which? "
            "Name one data set, or paths of the parts as several --dataset_name"
        )
    check_place(args.folder())
