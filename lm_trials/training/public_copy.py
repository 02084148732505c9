"""The public copy of a run: the files that are pushed to the Hub, without paths of this machine.

Published are the files in `PUBLIC`: the model, its tokenizer, its card and its record.  Not published are Trainer's
pickled arguments (loading a pickle runs code; `run.json` has them), TensorBoard's events (with the machine's name and
paths; `trainer_state.json` has the numbers), and the results of evaluations and probes.  Absolute paths are cut to
their last part: `/home/me/stories.jsonl` becomes `stories.jsonl`.
"""

from __future__ import annotations

import json
import os
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
from lm_trials.run_data import public_run, public_value

MODEL = (
    *("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", "adapter_config.json"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "chat_template*"),
    "README.md",
)
PUBLIC = (*MODEL, "run.json", "trainer_state.json", "*_results.json", "loss.png")
PICKLED_ARGUMENTS = "training_args.bin"
SUMS = "sums.json"
PREFIX, SUFFIX = ".push-", ".unfinished"
# In Trainer's card for a model trained from scratch, whose base is "".
OF_NO_BASE = "is a fine-tuned version of [](https://huggingface.co/)", "was trained from scratch"
LOADED_FROM = ("_name_or_path", "name_or_path", "tokenizer_file", "vocab_file")
BASE = "base_model_name_or_path"


def public_copy(run: Path, model: Path, to_resume: Mapping[str, Path]) -> Path:
    """Write the public copy of a run into a new folder in it, and return that folder.

    Unchanged files become hard links, which take no space and survive later changes of the run.

    Args:
        run: the run's folder, for `run.json`.
        model: the folder of the model, the run's or a checkpoint's.
        to_resume: checkpoints to publish with their optimizer, by their published names.

    Raises:
        OSError: where it cannot be written.
    """
    copy = Path(tempfile.mkdtemp(prefix=PREFIX, suffix=SUFFIX, dir=run))
    try:
        if model != run:
            _copy_files(run, copy, ("run.json",))
        _copy_files(model, copy, PUBLIC if model == run else (*MODEL, "trainer_state.json"))
        for name, checkpoint in to_resume.items():
            _copy_files(checkpoint, copy / name, ("*",))
            _seal_again(copy / name)
    except BaseException:
        shutil.rmtree(copy, ignore_errors=True)
        raise
    return copy


def remove_copies(run: Path) -> None:
    """Remove the public copies of killed processes."""
    for copy in run.glob(f"{PREFIX}*{SUFFIX}"):
        shutil.rmtree(copy, ignore_errors=True)


def _copy_files(source: Path, target: Path, patterns: tuple[str, ...]) -> None:
    """Copy or link the matching files of a folder, without its subfolders (evaluations, events)."""
    target.mkdir(exist_ok=True)
    for path in sorted(source.iterdir()):
        public = path.is_file() and not path.name.startswith(".") and path.name != PICKLED_ARGUMENTS
        if not public or not any(fnmatch(path.name, pattern) for pattern in patterns):
            continue
        copy = target / path.name
        if path.name == "README.md":
            copy.write_text(public_card(path.read_text(encoding="utf-8")), encoding="utf-8")
        elif path.name in REWRITTEN:
            values = REWRITTEN[path.name](json.loads(path.read_text(encoding="utf-8")))
            copy.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        else:
            try:
                os.link(path, copy)
            except OSError:  # a file system without links
                shutil.copyfile(path, copy)


def _seal_again(folder: Path) -> None:
    """Update a checkpoint's checksums to its public copy."""
    path = folder / SUMS
    if not path.is_file():
        return
    facts = json.loads(path.read_text(encoding="utf-8"))
    there = {file.name for file in folder.iterdir()}
    facts["files"] = {name: entry for name, entry in facts["files"].items() if name in there}
    kept = there - {name for name in REWRITTEN if name in facts["files"]}  # not to hash the optimizer again
    facts["files"] |= file_sums(folder, skip=kept)
    path.unlink()  # a link; the checkpoint's own file stays
    path.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _public_state(state: dict[str, Any]) -> dict[str, Any]:
    """Change the best checkpoint's path only, because the log contains generated stories."""
    return {**state, "best_model_checkpoint": public_value(state.get("best_model_checkpoint"))}


def _public_adapter(config: dict[str, Any]) -> dict[str, Any]:
    """Write a local base as `./x`, because `x` alone may name a Hub model."""
    base = config.get(BASE)
    return {**config, BASE: f"./{Path(str(base)).name}"} if is_local(base) else config


def _public_config(config: dict[str, Any]) -> dict[str, Any]:
    """Change the path it was loaded from only, because a chat template or a token may look like a path."""
    return {name: public_value(value) if name in LOADED_FROM else value for name, value in config.items()}


REWRITTEN: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "run.json": public_run,
    "trainer_state.json": _public_state,
    "adapter_config.json": _public_adapter,
    "config.json": _public_config,
    "tokenizer_config.json": _public_config,
}


def local_base(run: Path) -> str | None:
    """Return the local folder of an adapter's base; None for other runs and for a base on the Hub."""
    try:
        base = json.loads((run / "adapter_config.json").read_text(encoding="utf-8")).get(BASE)
    except (OSError, ValueError):
        return None
    return base if is_local(base) else None


def is_local(base: Any) -> bool:
    """Return whether the name of a base model is a local path and not a Hub name.

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
    r"""Return a card without a local base model, which the Hub refuses.

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
    data: Any = card.data
    bases = data.get("base_model")
    local = [base for base in (bases if isinstance(bases, list) else [bases]) if is_local(base)]
    if not local:
        return text
    data.base_model = [base for base in bases if base not in local] or None if isinstance(bases, list) else None
    if tags := data.get("tags"):
        data.tags = [tag for tag in tags if not any(base in tag for base in local)]
    content = str(card)
    for base in local:
        content = content.replace(base, Path(base).name)
    return content
