"""The command `lm-trials`: every program of the package, from any folder.

lm-trials demo
lm-trials train --dataset_name stories.jsonl
lm-trials probe lens --model_name_or_path runs/demo
accelerate launch --num_processes 2 -m lm_trials.cli train --dataset_name stories.jsonl
"""

from __future__ import annotations

import ast
import os
import sys
from argparse import ArgumentParser
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from textwrap import fill
from typing import Any

from lm_trials.console import UsageError, did_you_mean, script

COMMANDS = {
    "demo": ("lm_trials.commands.demo", "generate stories, train and evaluate a model (about 4 minutes)"),
    "prepare": ("lm_trials.commands.prepare", "corpora, vocabularies, token stores, protocol sets, pairs"),
    "cache": ("lm_trials.commands.cache", "fetch data sets; list and verify prepared data"),
    "train": ("lm_trials.commands.train", "pretrain a model or continue its training"),
    "tune": ("lm_trials.commands.tune", "fine-tune on prompts and completions: LoRA, QLoRA or all weights"),
    "align": ("lm_trials.commands.align", "learn from preferences (DPO) or rewards (GRPO)"),
    "evaluate": ("lm_trials.commands.evaluate", "loss, perplexity and accuracy of checkpoints on data sets"),
    "generate": ("lm_trials.evaluation.generate", "generate stories with a model, or chat with it"),
    "constraints": ("lm_trials.evaluation.constraints", "score whether stories follow their instructions"),
    "rewards": ("lm_trials.rewards.command", "score stories by rewards, beside texts that cheat them"),
    "latent-city": ("lm_trials.latent_city.evaluate", "ask a model about distances to a hidden city"),
    "new": ("lm_trials.trials.new", "write a commented trial file to start from"),
    "plan": ("lm_trials.trials.plan", "show a trial's runs, and what they cost, from a short rehearsal"),
    "run": ("lm_trials.trials.run", "run a trial file: everything in it that is not finished"),
    "status": ("lm_trials.trials.status", "show which jobs of a trial are finished"),
    "report": ("lm_trials.trials.trial_report", "write a trial's results: verdict, page, tables, figures"),
    "reproduce": ("lm_trials.trials.reproduce", "run a reported trial again, and compare every number"),
    "export-sweeps": ("lm_trials.trials.sweeps", "write a trial's stages as sweep files of W&B"),
    "compare": ("lm_trials.trials.compare", "compare arms: differences with intervals and tests"),
    "power": ("lm_trials.trials.power", "how many root seeds decide a difference, or show equivalence"),
    "order": ("lm_trials.training.data_order", "list the documents of each update of a run"),
    "llama2c": ("lm_trials.models.llama2c", "bring models from llama2.c (.bin, ckpt.pt), and take them there"),
    "dashboard": ("lm_trials.dashboard.command", "see runs in the browser: curves, snapshots, data, trials"),
    "probe": ("lm_trials.probing", "analyze a model's hidden states, attention or weights"),
}


def probes() -> list[str]:
    """Return the names of the probes: the folders of `lm_trials.probing`."""
    return sorted(module.name for module in iter_modules(import_module("lm_trials.probing").__path__) if module.ispkg)


def command_of(words: list[str]) -> tuple[Callable[[list[str]], Any], list[str]]:
    """Return the program that a command line names, and its remaining arguments.

    Raises:
        UsageError: for an unknown command or probe.

    >>> main, rest = command_of(["train", "--seed", "1"])
    >>> main.__module__, rest
    ('lm_trials.commands.train', ['--seed', '1'])
    """
    name, *rest = words
    if name.startswith("-"):
        raise UsageError(f"lm-trials {name}: the command comes before its flags; valid: {', '.join(COMMANDS)}")
    if name not in COMMANDS:
        raise UsageError(f"lm-trials {name}: unknown command; {did_you_mean(name, COMMANDS)}")
    module, _ = COMMANDS[name]
    if name == "probe":
        probe, *rest = rest or [""]
        if probe not in probes():
            raise UsageError(f"lm-trials probe {probe}: unknown probe; {did_you_mean(probe, probes())}")
        module += f".{probe}.probe"
    return import_module(module).main, rest


def overview() -> str:
    """Return the commands with one line each."""
    lines = [f"  {name:<13} {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(
        (
            "usage: lm-trials COMMAND [--flag value ...]",
            "",
            *lines,
            "",
            fill("probes: " + ", ".join(probes()), 80),
            "lm-trials COMMAND --help lists a command's flags.",
        )
    )


def probes_overview() -> str:
    """Return the probes with the first line of each program's docstring, which is read without importing it."""
    lines = []
    for name in probes():
        source = Path(__file__).parent / "probing" / name / "probe.py"
        first = (ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or "").partition("\n")[0]
        lines.append(fill(f"{name:<14} {first}", 80, initial_indent="  ", subsequent_indent=" " * 17))
    usage = "usage: lm-trials probe NAME [--flag value ...]"
    return "\n".join([usage, "", *lines, "", "lm-trials probe NAME --help lists a probe's flags."])


@script
def main(argv: list[str] | None = None) -> Any:
    """Run one command; returns what its program returns."""
    words = sys.argv[1:] if argv is None else argv
    if "_ARGCOMPLETE" in os.environ:
        return _complete()
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return None
    if words[0] == "--version":
        from lm_trials import __version__

        print(__version__)
        return None
    if words[0] == "probe" and (len(words) == 1 or words[1] in ("-h", "--help")):
        print(probes_overview())
        return None
    program, rest = command_of(words)
    return program(rest)


def _complete() -> Any:
    """Complete a command's name, or let its program complete its flags.

    argcomplete counts in `_ARGCOMPLETE` the words that belong to the command's name; argparse sees the others.
    """
    import argcomplete

    names = argcomplete.split_line(os.environ["COMP_LINE"], int(os.environ["COMP_POINT"]))[3]
    if len(names) == 1 or (names[1] == "probe" and len(names) == 2):
        parser = ArgumentParser(add_help=False)
        parser.add_argument("command", choices=list(COMMANDS))
        parser.add_argument("probe", choices=probes(), nargs="?")
        return argcomplete.autocomplete(parser)
    program, _ = command_of(names[1:])
    os.environ["_ARGCOMPLETE"] = "3" if names[1] in ("probe", "prepare", "llama2c") else "2"
    return program(names[3:] if names[1] == "probe" else names[2:])


def run() -> None:
    """Run the command line; what the programs return is for Python, not an exit status."""
    main()


if __name__ == "__main__":
    run()
