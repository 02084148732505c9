"""The public copy of a run: the files that a Hub gets, and nothing in them that is only this machine's business.

Published is what is listed in `PUBLIC`: the model, its tokenizer, its card, and how it was made.  Not published are the
Trainer's pickled arguments (`run.json` has them, and a pickle would be run by whoever loads it), TensorBoard's events
(their names hold the machine's, their texts its places; the numbers are in `trainer_state.json`), stories and figures
of evaluations and probes, and anything half-written.  Of what is published, places of this machine are cut to their
last part: `/home/me/stories.jsonl` becomes `stories.jsonl`, the working directory is left out.  The run stays as it is.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from lm_trials.files import file_sums

MODEL = (
    *("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", "adapter_config.json"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "chat_template*"),
    "README.md",
)
# What tells how it was made; in a checkpoint's place it is the run's own.
STORY = ("run.json", "trainer_state.json", "*_results.json", "loss.png")
PUBLIC = (*MODEL, *STORY)
PICKLED_ARGUMENTS = "training_args.bin"
SUMS = "sums.json"
PREFIX, SUFFIX = ".push-", ".unfinished"
# From where an absolute path begins to its last slash; `https://` is none.
PLACE = re.compile(r"""(?:^|(?<=[\s=+,:'"(\[]))(?:~\w+/|(?:file:/*|~|[A-Za-z]:)?/(?!/)[^+,'"\n]*/)""")
# Trainer's card of a model that started from nothing, whose base is "".
OF_NO_BASE = "is a fine-tuned version of [](https://huggingface.co/)", "was trained from scratch"
LOADED_FROM = ("_name_or_path", "name_or_path", "tokenizer_file", "vocab_file")
WHERE_THE_BASE_IS = "base_model_name_or_path"


def public_copy(run: Path, model: Path, to_resume: Mapping[str, Path]) -> Path:
    """Put the public copy of a run into a new folder beside its files, and return it; `remove_copy` removes it.

    Files that are published as they are become links, so that what is written or removed later leaves the copy alone
    and the disk holds them once.

    Args:
        run: the run's folder, of which the story of the run is taken.
        model: the folder of the model, which is the run's or a checkpoint's.
        to_resume: checkpoints that are published whole, optimizer and all, by the names that they get.

    Raises:
        OSError: where it cannot be written.
    """
    copy = Path(tempfile.mkdtemp(prefix=PREFIX, suffix=SUFFIX, dir=run))
    try:
        if model != run:
            _copy_files(run, copy, lambda name: _listed(name, ("run.json",)))
        _copy_files(model, copy, lambda name: _listed(name, PUBLIC if model == run else (*MODEL, "trainer_state.json")))
        for name, checkpoint in to_resume.items():
            _copy_files(checkpoint, copy / name, lambda name: name != PICKLED_ARGUMENTS)
            _seal_again(copy / name)
    except BaseException:
        remove_copy(copy)
        raise
    return copy


def remove_copy(copy: Path) -> None:
    """Remove a public copy."""
    shutil.rmtree(copy, ignore_errors=True)


def remove_copies(run: Path) -> None:
    """Remove the public copies that a killed process left."""
    for copy in run.glob(f"{PREFIX}*{SUFFIX}"):
        remove_copy(copy)


def _listed(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _copy_files(source: Path, target: Path, is_public: Callable[[str], bool]) -> None:
    """Copy or link the files that lie in a folder itself; its folders (evaluations, events) are not public."""
    target.mkdir(exist_ok=True)
    for path in sorted(source.iterdir()):
        if not path.is_file() or path.name.startswith(".") or not is_public(path.name):
            continue
        if path.name == "README.md":
            (target / path.name).write_text(public_card(path.read_text(encoding="utf-8")), encoding="utf-8")
        elif path.name in REWRITTEN:
            values = REWRITTEN[path.name](json.loads(path.read_text(encoding="utf-8")))
            (target / path.name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        else:
            _link(path, target / path.name)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)


def _seal_again(folder: Path) -> None:
    """Bring the sums of a checkpoint to what its public copy holds."""
    path = folder / SUMS
    if not path.is_file():
        return
    facts = json.loads(path.read_text(encoding="utf-8"))
    there = {file.name for file in folder.iterdir()}
    facts["files"] = {name: entry for name, entry in facts["files"].items() if name in there}
    kept = there - {name for name in REWRITTEN if name in facts["files"]}  # hashing the optimizer anew takes its time
    facts["files"] |= file_sums(folder, skip=kept)
    path.unlink()  # a link: the checkpoint's own stays
    path.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def public_value(value: Any) -> Any:
    """Return a value of JSON with each absolute path in it cut to its last part, at any depth, keys too.

    >>> public_value({"dataset_name": "/home/me/my stories/a.jsonl+/data/b", "command": ["--output_dir=/data/runs/x"]})
    {'dataset_name': 'a.jsonl+b', 'command': ['--output_dir=x']}
    >>> public_value(["file:///home/me/a", "~me/b", "~/b", "runs/x", "https://host/a/b", "and/or", 0.5, None])
    ['a', 'b', '~/b', 'runs/x', 'https://host/a/b', 'and/or', 0.5, None]
    """
    if isinstance(value, dict):
        return {public_value(name): public_value(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [public_value(inner) for inner in value]
    return PLACE.sub("", value) if isinstance(value, str) else value


def _public_run(run: dict[str, Any]) -> dict[str, Any]:
    environment = {name: value for name, value in run.get("environment", {}).items() if name != "working_directory"}
    return public_value({**run, "environment": environment})


def _public_state(state: dict[str, Any]) -> dict[str, Any]:
    """Only the best checkpoint's place: the log holds stories that the model wrote, which nobody may change."""
    return {**state, "best_model_checkpoint": public_value(state.get("best_model_checkpoint"))}


def _public_adapter(config: dict[str, Any]) -> dict[str, Any]:
    """A base that is a folder here is named as one: `x` alone may be a model of somebody's on the Hub."""
    base = config.get(WHERE_THE_BASE_IS)
    return {**config, WHERE_THE_BASE_IS: f"./{Path(base).name}"} if is_local(base) else config


def _public_config(config: dict[str, Any]) -> dict[str, Any]:
    """Only where it was loaded from: a chat template or a token is no place, whatever it looks like."""
    return {name: public_value(value) if name in LOADED_FROM else value for name, value in config.items()}


REWRITTEN: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "run.json": _public_run,
    "trainer_state.json": _public_state,
    "adapter_config.json": _public_adapter,
    "config.json": _public_config,
    "tokenizer_config.json": _public_config,
}


def local_base(run: Path) -> str | None:
    """Return the folder of this machine that an adapter's base is, which nobody else has; None for any other run."""
    try:
        base = json.loads((run / "adapter_config.json").read_text(encoding="utf-8")).get(WHERE_THE_BASE_IS)
    except (OSError, ValueError):
        return None
    return base if is_local(base) else None


def is_local(base: Any) -> bool:
    """Say whether what names a base model is a place of this machine and no name of the Hub.

    >>> is_local("/models/base"), is_local("."), is_local("HuggingFaceTB/SmolLM-135M"), is_local(None)
    (True, True, False, False)
    """
    if not isinstance(base, str) or not base:
        return False
    try:
        validate_repo_id(base)
    except HFValidationError:
        return True
    return Path(base).is_dir()


def public_card(text: str) -> str:
    r"""Return a card without the place of a local base: a Hub takes no card whose base is none of its models.

    >>> print(public_card("---\nbase_model: /models/base\nlibrary_name: peft\n---\nOn /models/base.\n"))
    ---
    library_name: peft
    ---
    On base.
    <BLANKLINE>
    """
    text = text.replace(*OF_NO_BASE)
    if "base_model:" not in text:
        return text
    card = ModelCard(text, ignore_metadata_errors=True)
    bases = card.data.get("base_model")
    local = [base for base in (bases if isinstance(bases, list) else [bases]) if is_local(base)]
    if not local:
        return text
    card.data.base_model = [base for base in bases if base not in local] or None if isinstance(bases, list) else None
    tags = card.data.get("tags")
    if tags:
        card.data.tags = [tag for tag in tags if not any(base in tag for base in local)]
    content = str(card)
    for base in local:
        content = content.replace(base, Path(base).name)
    return content
