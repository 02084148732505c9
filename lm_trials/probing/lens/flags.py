"""The flags of `probes/lens.py`; no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lm_trials.console import UsageError
from lm_trials.flags import option
from lm_trials.probing.flags import SubjectArguments, TextArguments, check_subjects


@dataclass
class LensArguments:
    """Which layers are read, and how the tuned lens is trained."""

    layers: list[int] = option(
        [],
        distinct=True,
        help="Hidden states to read: 0 the embeddings, L the last; negative from the end. Default: all.",
    )
    lens_steps: int = option(250, least=0, help="Updates of the tuned lens; 0: the logit lens alone.")
    lens_batch_size: int = option(8, least=1, help="Stories of an update.")
    learning_rate: float = option(1.0, above=0, help="Of SGD with Nesterov momentum; falls to 0 in a straight line.")
    max_train_samples: int = option(
        1000, least=1, help="Stories that the tuned lens and the token frequencies are learnt from."
    )
    lens_dataset_name: str | None = option(
        None, help="Data set for that. Default: the train split of --dataset_name; of a path, four stories in five."
    )
    lens_dataset_split: str | None = option(None, help="Split of it. Default: train; a path is read whole.")
    lens: list[str] = option(
        [],
        not_with="all_checkpoints",
        why="a lens is of one model",
        help="Tuned lenses of an earlier call (lens.safetensors), one for each model.",
    )
    text: str | None = option(
        None, filled=True, help="A text to show layer by layer: the likeliest next token at each place."
    )
    all_checkpoints: bool = option(False, help="Read each checkpoint of the runs too, with the logit lens.")
    tune_checkpoints: bool = option(False, needs="all_checkpoints", help="Train a tuned lens for each of them.")

    @property
    def tuned(self) -> bool:
        """Whether tuned lenses are trained."""
        return self.lens_steps > 0 and (self.tune_checkpoints or not self.all_checkpoints)


ARGUMENTS = (SubjectArguments, TextArguments, LensArguments)


def check_arguments(subjects: SubjectArguments, texts: TextArguments, args: LensArguments) -> None:
    """Refuse what means nothing, before anything is loaded.

    Raises:
        UsageError: for the first of it.

    >>> check_arguments(SubjectArguments(["owner/model"]), TextArguments(), LensArguments(lens=["a", "b"]))
    Traceback (most recent call last):
    lm_trials.console.UsageError: --lens names 2 files for 1 models; give one for each, in their order
    """
    check_subjects(subjects, "lens")
    if args.lens and len(args.lens) != len(subjects.model_name_or_path):
        raise UsageError(
            f"--lens names {len(args.lens)} files for {len(subjects.model_name_or_path)} models; "
            "give one for each, in their order"
        )
    for name in args.lens:
        if not Path(name).is_file():
            raise UsageError(f"--lens {name} is no file; give the lens.safetensors that this probe wrote")
