"""Train a small language model from scratch: about 4 minutes on two CPU cores, offline.

    lm-trials demo
    lm-trials demo --output_dir /tmp/demo

The demo generates 20,000 stories from a grammar, trains a tokenizer and a Llama of
0.9M parameters on them, evaluates the model on held-out stories and samples three
stories from it.  Each step is one command, printed before it runs.
"""

from __future__ import annotations

import os
import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_trials.console import UsageError, note, script, show_facts
from lm_trials.flags import option, parse_arguments


@dataclass
class DemoArguments:
    """Where the demo's files go."""

    output_dir: str = option("out/demo", output=True, help="Folder of the model, its evaluation and the data.")


def steps(folder: Path) -> list[list[str]]:
    """Return the commands, as words after `lm-trials`."""
    data, run = ["--data_cache_dir", str(folder / "data")], str(folder / "run")
    vocab = ["--corpus", "generated", "--vocab_size", "1000"]
    return [
        ["prepare", "generate", "--num_stories", "20000", "--seed", "0", *data],
        ["prepare", "train_vocab", *vocab, *data],
        ["prepare", "pretokenize", *vocab, *data],
        ["train", "--config", "demo", *data, "--output_dir", run],
        ["evaluate", "--model_name_or_path", run, "--dataset_name", "generated", *data],
        ["generate", "--model_name_or_path", run, "--num_samples", "3", "--temperature", "0.5", "--seed", "1"],
    ]


@script
def main(argv: list[str] | None = None) -> list[Any]:
    """Run the steps one after the other; returns what each returns."""
    (args,) = parse_arguments(argv, (DemoArguments,), __doc__ or "", prog="lm-trials demo")
    folder = Path(args.output_dir)
    if folder.exists():
        raise UsageError(f"--output_dir {folder} exists; remove it, or give another folder")
    from lm_trials.cli import command_of

    # As accelerate_configs/cpu.yaml: the same number of threads gives the same losses to the last bit.
    os.environ |= {"ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    start, results = time.monotonic(), []
    commands = steps(folder)
    for number, words in enumerate(commands, start=1):
        note(f"\n{number} of {len(commands)}: lm-trials {shlex.join(words)}")
        program, rest = command_of(words)
        try:
            results.append(program(rest))
        except (SystemExit, KeyboardInterrupt):
            note(f"The demo ended early. To start it again, remove {folder} or give another --output_dir.")
            raise
    run, data = folder / "run", f"--dataset_name generated --data_cache_dir {folder / 'data'}"
    facts = {
        "took": f"{time.monotonic() - start:.0f} s",
        "model": f"{run} (weights, tokenizer, log, loss.png; its evaluation is in {run / 'eval'})",
        "write": f'lm-trials generate --model_name_or_path {run} --prompt "One day, Lily"',
        "probe": f"lm-trials probe lens --model_name_or_path {run} {data}",
    }
    show_facts("Next", facts)
    return results
