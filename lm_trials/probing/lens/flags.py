"""The flags of the lens probe; no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lm_trials.console import UsageError
from lm_trials.flags import option
from lm_trials.probing.flags import SubjectArguments, TextArguments, check_subjects


@dataclass
class LensArguments:
    """Which layers are measured, and how the tuned lens is trained."""

    layers: list[int] = option(
        [],
        distinct=True,
        help="Hidden states to measure: 0 the embeddings, L the last; negative counts from the end. Default: all.",
    )
    lens_steps: int = option(250, least=0, help="Updates of the tuned lens; 0 measures the logit lens alone.")
    lens_batch_size: int = option(8, least=1, help="Stories per update.")
    learning_rate: float = option(
        1.0, above=0, help="Learning rate of SGD with Nesterov momentum; falls linearly to 0."
    )
    max_train_samples: int = option(
        1000, least=1, help="Stories that the tuned lens and the token frequencies are trained on."
    )
    lens_dataset_name: str | None = option(
        None, help="Data set to train on. Default: the train split of --dataset_name; of a path, four stories in five."
    )
    lens_dataset_split: str | None = option(None, help="Split to train on. Default: train; a path is read whole.")
    lens: list[str] = option(
        [],
        not_with="all_checkpoints",
        why="a lens belongs to one model",
        help="Tuned lenses of an earlier run of this probe (lens.safetensors), one per model.",
    )
    text: str | None = option(None, filled=True, help="Text for which each layer's most likely next tokens are shown.")
    all_checkpoints: bool = option(False, help="Also measure each checkpoint of the runs, with the logit lens.")
    tune_checkpoints: bool = option(False, needs="all_checkpoints", help="Also train a tuned lens for each checkpoint.")

    @property
    def tuned(self) -> bool:
        """Whether tuned lenses are trained."""
        return self.lens_steps > 0 and (self.tune_checkpoints or not self.all_checkpoints)


ARGUMENTS = (SubjectArguments, TextArguments, LensArguments)


def check_arguments(subjects: SubjectArguments, args: LensArguments) -> None:
    """Check the flags before anything is loaded.

    Raises:
        UsageError: for the first flag that is wrong.

    >>> check_arguments(SubjectArguments(["owner/model"]), LensArguments(lens=["a", "b"]))
    Traceback (most recent call last):
    lm_trials.console.UsageError: --lens names 2 files for 1 models; give one file per model, in the same order
    """
    check_subjects(subjects, "lens")
    if args.lens and len(args.lens) != len(subjects.model_name_or_path):
        raise UsageError(
            f"--lens names {len(args.lens)} files for {len(subjects.model_name_or_path)} models; "
            "give one file per model, in the same order"
        )
    for name in args.lens:
        if not Path(name).is_file():
            raise UsageError(f"--lens {name} does not exist; give the lens.safetensors that this probe wrote")
