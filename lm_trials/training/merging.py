"""Merging an adapter into its base's unquantized weights (`--merge_output`)."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import torch

from lm_trials.console import UsageError, note
from lm_trials.evaluation.example_losses import loss_difference, loss_estimates
from lm_trials.files import finished_folder, read_object, weights_digest
from lm_trials.models.adapters import merged
from lm_trials.models.reference import load_model, load_tokenizer_of, read_run, resolve_model
from lm_trials.run_fields import RUN_FILE
from lm_trials.training.tuning_examples import end_at_turns
from lm_trials.training.tuning_flags import Adapter
from lm_trials.training.tuning_trainer import FineTuner


def check_merge(adapter_args: Adapter, output_dir: str, identity: str) -> None:
    """Check `--merge_output` before anything is trained, for a run of this `checkpoints.run_identity`.

    Raises:
        UsageError: for a folder that overlaps the run or its base, or has other files than this run's merged model.
    """
    if not adapter_args.merge_output:
        return
    destination = Path(adapter_args.merge_output)
    for kind, folder in (("the run", output_dir), ("the base", adapter_args.model_name_or_path or "")):
        one, other = destination.resolve(), Path(folder).resolve()
        if one == other or one in other.parents or other in one.parents:
            raise UsageError(f"--merge_output {destination} overlaps the folder of {kind}, {folder}; give another")
    if destination.is_dir() and any(destination.iterdir()) and _merged_from(destination).get("run") != identity:
        raise UsageError(f"--merge_output {destination} is not empty; give another folder, or remove it")


def _merged_from(destination: Path) -> dict[str, Any]:
    """Return the merged adapter's facts in a merged model's `run.json`."""
    run = read_run(destination) if (destination / RUN_FILE).is_file() else None
    return (run or {}).get("merged_from", {})


def is_merged(adapter_args: Adapter, output_dir: str) -> bool:
    """Return whether there is nothing left to merge."""
    if not adapter_args.merge_output:
        return True
    return _merged_from(Path(adapter_args.merge_output)).get("adapter_sha256") == weights_digest(Path(output_dir))


def merge_output(trainer: FineTuner, adapter_args: Adapter) -> dict[str, str]:
    """Merge the adapter and measure the change in validation loss; returns facts to show."""
    if not adapter_args.merge_output:
        return {}
    destination, folder = Path(adapter_args.merge_output), Path(trainer.args.output_dir)
    dtype = getattr(torch, adapter_args.dtype)
    model: Any = None
    if trainer.is_world_process_zero():
        model = merge_adapter(folder, destination, trainer.run_identity, dtype)
    trainer.accelerator.wait_for_everyone()
    facts = {"merged model": str(destination)}
    if trainer.eval_store:
        model = load_model(resolve_model(str(destination)), dtype) if model is None else model
        before_NK, after_NK = trainer.sums_NK, trainer.evaluation_sums(model.to(trainer.args.device))
        loss, difference = loss_estimates(after_NK)["completion"]["loss"], loss_difference(after_NK, before_NK)
        limits = "" if math.isnan(difference.lower) else f" [{difference.lower:+.1e}, {difference.upper:+.1e}]"
        facts["merged loss"] = f"{loss}; merged - unmerged {difference.estimate:+.1e}{limits}"
    return facts


def merge_adapter(adapter: Path, destination: Path, identity: str, dtype: torch.dtype = torch.float32) -> Any:
    """Merge an adapter into its base's unquantized weights, save model and tokenizer, and return the model.

    Merged into quantized weights, the sum would be quantized again, and with nf4 the model would be useless.  Merging
    an adapter of an 8-bit base into float32 changed its loss by -0.0002.  Only a complete model replaces a folder.

    Raises:
        UsageError: for an adapter that does not fit its base.
    """
    reference = resolve_model(str(adapter))
    model = merged(load_model(reference, dtype), str(adapter))
    fresh = destination.with_name(f"{destination.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)  # from a merge that was killed between the last two steps
    tokenizer = load_tokenizer_of(reference)
    end_at_turns(tokenizer, model)
    with finished_folder(fresh) as unfinished:
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        if (adapter / RUN_FILE).is_file():
            run = read_object(adapter / RUN_FILE)
            digest = weights_digest(adapter)
            run["merged_from"] = {"run": identity, "run_name": run.get("run_name"), "adapter_sha256": digest}
            (unfinished / RUN_FILE).write_text(json.dumps(run, indent=2, sort_keys=True) + "\n")
    if destination.exists():
        shutil.rmtree(destination)
    fresh.rename(destination)
    note(f"note: merged into the unquantized weights of {reference.base}")
    return model
