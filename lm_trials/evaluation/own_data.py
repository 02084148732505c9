"""The data of a model's own run: the default data set, and notes where its training stories would be scored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lm_trials.console import UsageError, command_line, note
from lm_trials.data.datasets import DataSet, Selection, find_prepared, open_dataset
from lm_trials.evaluation.checkpoints import Candidate
from lm_trials.evaluation.domains import TrainingData, in_domain, stage_contents, stages
from lm_trials.evaluation.flags import EvaluationArguments
from lm_trials.models.reference import read_run
from lm_trials.run_data import own_data
from lm_trials.stories.corpora import read_manifest
from lm_trials.stories.splits import file_splits

FALLBACK = "generated"  # the corpus of the demo and of the published commands that name none
HASHED = 1.0  # percent of the stories: the validation split by hash of a source that is not prepared


def choose_dataset(args: Any, model: str) -> str:
    """Return the default of `--dataset_name`: the data of a model's run, else `generated` if it is prepared.

    In place, other flags of `args` become those that read the run's data; a note names the data set.

    Raises:
        UsageError: if neither is found.
    """
    run = read_run(Path(model))
    own = own_data(run) or {}
    name, places = own.pop("dataset_name", None), [args.data_cache_dir, own.pop("data_cache_dir", None)]
    own = {flag: value for flag, value in own.items() if value is not None}
    if name is not None and all(hasattr(args, flag) for flag in own):
        for place in dict.fromkeys(filter(None, places)):
            if _is_here(run, name, place, streamed="streaming" in own):
                for flag, value in {**own, "data_cache_dir": place}.items():
                    if flag == "data_cache_dir" or getattr(args, flag) in (None, "False"):
                        setattr(args, flag, value)
                note(f"note: --dataset_name is not given; using {name}, the data of {model}")
                return name
    if find_prepared(FALLBACK, Path(args.data_cache_dir)):
        note(f"note: --dataset_name is not given; using {FALLBACK}, prepared in {args.data_cache_dir}")
        return FALLBACK
    why = f"the data of {model}, {name}, is not here" if name else f"{model} has no run.json that names stories"
    raise UsageError(f"--dataset_name is missing, and {why}; give a prepared corpus, a file or a Hub data set")


def _is_here(run: Any, name: str, place: str, streamed: bool) -> bool:
    """Whether a run's data is prepared in a folder, with the same content; of a stream, whether it can be read."""
    if streamed:
        return Path(name).exists() or "revision" in run["outcome"]["data"]["source"]
    members = [name] if find_prepared(name, Path(place)) else name.split("+")
    if not all(find_prepared(member, Path(place)) for member in members):
        return False
    return _trained_on(run, open_dataset(name, place).select(), Path(place))


def training_note(
    dataset: DataSet, selection: Selection, candidate: Candidate, args: EvaluationArguments
) -> str | None:
    """Return a note if a data set that is not prepared is read otherwise than the model's training read it.

    Read whole, it contains the training stories.  A named split is by hash, 98, 1 and 1 %, which is another split than
    that of a corpus with another validation share.
    """
    place, model, split = Path(args.data_cache_dir), candidate.reference.name, args.dataset_split
    if all(member.prepared for member in dataset.members):
        return None
    run = next((run for run in stages(candidate.run) if _trained_on(run, selection, place)), None)
    if run is None:
        return None
    own = own_data(run)
    if split is not None:
        if _same_split(split, own, run, place):
            return None
        text = f"note: the {split} split of {dataset.name} is not the one of {model}'s training"
    elif any(member.default_split for member in dataset.members) or _is_held_out(dataset.name):
        return None
    else:
        text = f"note: {dataset.name} is read whole and contains stories that {model} was trained on"
    if own is None:
        return f"{text}; its validation stories are not prepared"
    if split not in (None, "validation"):
        own["dataset_split"] = split
    command = command_line("evaluate", model_name_or_path=[model], **own)
    return f"{text}; for the {split or 'validation'} split of the training:\n{command}"


def _trained_on(run: Any, selection: Selection, place: Path) -> bool:
    return in_domain(TrainingData(stage_contents(run, place)), selection.parts) in ("yes", "partly")


def _is_held_out(name: str) -> bool:
    """Whether a file is named after a split that is not trained on, as `validation.jsonl` of a folder."""
    return file_splits([Path(name).name])[0] in (["validation"], ["test"])


def _same_split(split: str, own: dict[str, Any] | None, run: Any, place: Path) -> bool:
    """Whether a split by hash of a source is that of the run's corpus; the test split is the same for any share."""
    corpus = find_prepared((own or {}).get("dataset_name", ""), place)
    manifest = read_manifest(corpus.corpus()) if corpus else {}
    percent = manifest.get("origin", {}).get("validation_split_percentage")
    percent = run["outcome"].get("validation_split_percentage") if percent is None else percent
    return manifest.get("split_by") != "shard" and (split == "test" or percent in (None, HASHED))
