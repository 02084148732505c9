"""The flags of `probes/lens.py`; no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from lm_trials.console import UsageError
from lm_trials.flags import option
from lm_trials.probing.flags import SubjectArguments, TextArguments, check_subjects, check_texts


@dataclass
class LensArguments:
    """Which layers are read, and how the tuned lens is trained."""

    layers: list[int] = option(
        [], help="Hidden states to read: 0 the embeddings, L the last; negative from the end. Default: all."
    )
    lens_steps: int = option(250, help="Updates of the tuned lens; 0: the logit lens alone.")
    lens_batch_size: int = option(8, help="Stories of an update.")
    learning_rate: float = option(1.0, help="Of SGD with Nesterov momentum; falls to 0 in a straight line.")
    max_train_samples: int = option(1000, help="Stories that the tuned lens and the token frequencies are learnt from.")
    lens_dataset_name: str | None = option(
        None, help="Data set for that. Default: the train split of --dataset_name; of a path, four stories in five."
    )
    lens_dataset_split: str | None = option(None, help="Split of it. Default: train; a path is read whole.")
    lens: list[str] = option([], help="Tuned lenses of an earlier call (lens.safetensors), one for each model.")
    text: str | None = option(None, help="A text to show layer by layer: the likeliest next token at each place.")
    all_checkpoints: bool = option(False, help="Read each checkpoint of the runs too, with the logit lens.")
    tune_checkpoints: bool = option(False, help="Train a tuned lens for each of them.")

    @property
    def tuned(self) -> bool:
        """Whether tuned lenses are trained."""
        return self.lens_steps > 0 and (self.tune_checkpoints or not self.all_checkpoints)


ARGUMENTS = (SubjectArguments, TextArguments, LensArguments)


def check_arguments(subjects: SubjectArguments, texts: TextArguments, args: LensArguments) -> None:
    """Refuse what means nothing, before anything is loaded.

    Raises:
        UsageError: for the first of it.

    >>> check_arguments(SubjectArguments(["owner/model"]), TextArguments(), LensArguments(lens_steps=-1))
    Traceback (most recent call last):
    lm_trials.console.UsageError: --lens_steps -1 are no updates; give 0 (the logit lens alone) or more, such as 250
    """
    check_subjects(subjects, "lens")
    check_texts(texts)
    if args.lens_steps < 0:
        raise UsageError(
            f"--lens_steps {args.lens_steps} are no updates; give 0 (the logit lens alone) or more, such as 250"
        )
    for flag in ("lens_batch_size", "max_train_samples"):
        if getattr(args, flag) < 1:
            raise UsageError(f"--{flag} {getattr(args, flag)} leaves nothing to learn from; give at least 1")
    if not (math.isfinite(args.learning_rate) and args.learning_rate > 0):
        raise UsageError(f"--learning_rate {args.learning_rate:g} is no rate; give more than 0, such as 1")
    if twice := [layer for layer in args.layers if args.layers.count(layer) > 1]:
        raise UsageError(f"--layers names {twice[0]} twice; name each layer once")
    if args.text is not None and not args.text.strip():
        raise UsageError("--text is empty; give a text of at least two tokens, or leave it away")
    if args.tune_checkpoints and not args.all_checkpoints:
        raise UsageError("--tune_checkpoints: no checkpoints are read; give --all_checkpoints too, or leave it away")
    _check_files(subjects, args)


def _check_files(subjects: SubjectArguments, args: LensArguments) -> None:
    if args.lens and args.all_checkpoints:
        raise UsageError("--lens is of one model and --all_checkpoints reads many; leave one of the two away")
    if args.lens and len(args.lens) != len(subjects.model_name_or_path):
        raise UsageError(
            f"--lens names {len(args.lens)} files for {len(subjects.model_name_or_path)} models; "
            "give one for each, in their order"
        )
    for name in args.lens:
        if not Path(name).is_file():
            raise UsageError(f"--lens {name} is no file; give the lens.safetensors that this probe wrote")
