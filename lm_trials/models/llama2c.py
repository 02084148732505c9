"""Bring models from llama2.c, and take them there.

    lm-trials llama2c import stories15M.bin runs/stories15M \\
        --tokenizer tokenizer.model
    lm-trials llama2c import ckpt.pt runs/deleted --tokenizer tok8192.model
    lm-trials llama2c export runs/demo demo.bin
    lm-trials llama2c export runs/demo demo-int8.bin --version 2

`import` reads .bin files of versions 0, 1 and 2 and checkpoints (ckpt.pt) of llama2.c's
trainer and those derived from it; of a checkpoint with LoRA it makes the base and an
adapter.  `export` writes the model and, beside it, tokenizer.bin: run.c reads version 0,
runq.c version 2 (int8).  Each command has its own --help.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_trials.console import UsageError, command_line, did_you_mean, load_libraries, note, script, show_facts
from lm_trials.files import check_writable, finished_folder, write_file
from lm_trials.flags import option, parse_arguments, show_commands

TOKENIZER = "tokenizer.bin"
BASE = "base"  # the folder of an adapter's base, in the adapter's


@dataclass
class ImportArguments:
    """Make a model folder of a llama2.c model or checkpoint: import FILE FOLDER --tokenizer FILE.model."""

    source: str = option("", required="FILE", help="A .bin file (version 0, 1 or 2) or a checkpoint such as ckpt.pt.")
    output_dir: str = option("", required="FOLDER", help="New folder for the model.")
    tokenizer_name: str = option(
        "", aliases=["--tokenizer"], required="FILE.model", help="Its tokenizer: a .model file, a folder or a Hub name."
    )


@dataclass
class ExportArguments:
    """Write a Llama as a llama2.c file, and tokenizer.bin beside it: export MODEL FILE.bin."""

    model_name_or_path: str = option(
        "", aliases=["--model"], required="MODEL", help="Run, checkpoint, adapter (it is merged) or Hub model."
    )
    output: str = option("", required="FILE.bin", help="New file for the model.")
    version: int = option(
        0, least=0, most=2, help="Format: 0 for run.c, 1 with a header of 256 bytes, 2 in int8 for runq.c."
    )


def import_model(args: ImportArguments) -> Path:
    """Import a model; returns its folder, of a checkpoint with LoRA the adapter's."""
    source, folder = Path(args.source), Path(os.path.abspath(args.output_dir))
    if not source.is_file():
        raise UsageError(f"--source {source} is not a file; give a .bin file or a checkpoint such as ckpt.pt")
    if folder.exists():
        raise UsageError(f"--output_dir {args.output_dir} exists; give a new folder")
    check_writable("--output_dir", folder)
    load_libraries()
    from lm_trials.models.llama2c_files import build_llama, read_llama2c, write_adapter
    from lm_trials.models.reference import check_finite
    from lm_trials.models.shapes import describe_shape
    from lm_trials.tokens.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(args.tokenizer_name)
    found = read_llama2c(source)
    if len(tokenizer) != found.shape.vocab_size:
        raise UsageError(
            f"--tokenizer_name {args.tokenizer_name} has {len(tokenizer):,} tokens, and {source} has embeddings for "
            f"{found.shape.vocab_size:,}; give the tokenizer that it was trained with"
        )
    model = build_llama(found, tokenizer.bos_token_id, tokenizer.eos_token_id)
    check_finite(model, str(source))
    with finished_folder(folder) as unfinished:
        place = unfinished / BASE if found.lora else unfinished
        model.save_pretrained(place)
        tokenizer.save_pretrained(place)
        if found.lora:
            write_adapter(found, unfinished, folder / BASE)
    for line in found.notes:
        note(f"note: {source}: {line}")
    facts = {"model": describe_shape(model.config)}
    if found.lora:
        facts["adapter"] = f"rank {found.lora.rank}, alpha {found.lora.alpha:g}; its base is in {BASE}"
    show_facts(args.output_dir, facts | {"next": command_line("generate", model_name_or_path=args.output_dir)})
    return folder


def export_model(args: ExportArguments) -> Path:
    """Export a model and its tokenizer; returns the model's file."""
    output = Path(os.path.abspath(args.output))
    if output.exists():
        raise UsageError(f"--output {args.output} exists; give a new file")
    check_writable("--output", output.parent)
    load_libraries()
    from lm_trials.models.adapters import merged
    from lm_trials.models.llama2c_files import check_llama, from_llama, tokenizer_bytes, write_llama2c
    from lm_trials.models.reference import load_config, load_model, load_tokenizer_of, resolve_model

    reference = resolve_model(args.model_name_or_path)
    check_llama(load_config(reference), reference.name)
    tokens = tokenizer_bytes(load_tokenizer_of(reference), load_config(reference).vocab_size, reference.name)
    beside = output.with_name(TOKENIZER)
    if output == beside or (beside.exists() and (beside.is_dir() or beside.read_bytes() != tokens)):
        raise UsageError(f"--output {args.output}: {beside} exists, or would be another tokenizer; give another folder")
    model: Any = load_model(reference)
    found = from_llama(merged(model, reference.name) if reference.base else model)
    write_file(output, lambda place: write_llama2c(found, place, args.version))
    write_file(beside, tokens)
    program = {0: "./run {0} -z {1} -t 0", 2: "./runq {0} -z {1} -t 0"}.get(args.version)
    facts = {
        "file": f"{args.output}: version {args.version}, {output.stat().st_size:,} bytes",
        "tokenizer": str(beside),
    }
    show_facts(reference.name, facts | ({"next": program.format(args.output, beside)} if program else {}))
    return output


COMMANDS: dict[str, tuple[type, Callable[[Any], Any]]] = {
    "import": (ImportArguments, import_model),
    "export": (ExportArguments, export_model),
}
PLACES = {"import": ("source", "output_dir"), "export": ("model_name_or_path", "output")}


def _named(words: list[str], places: tuple[str, ...]) -> list[str]:
    """Write the words that belong to no flag as the flags `places`; each flag has one value."""
    flags: list[str] = []
    plain: list[str] = []
    following = iter(words)
    for word in following:
        if word.startswith("-"):
            flags += [word, *([] if "=" in word else [next(following, "")])] if word not in ("-h", "--help") else [word]
        else:
            plain.append(word)
    named = [f"--{place}={word}" for place, word in zip(places, plain, strict=False)]
    return [*plain[len(places) :], *named, *flags]


@script
def main(argv: list[str] | None = None) -> Any:
    """Run one command; returns the place of what it made."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        show_commands("lm-trials llama2c", __doc__ or "", COMMANDS)
        raise SystemExit(0)
    name, *rest = argv
    if name not in COMMANDS:
        raise UsageError(f"{name} is not a command; {did_you_mean(name, COMMANDS)}")
    arguments, program = COMMANDS[name]
    words = _named(rest, PLACES[name])
    (args,) = parse_arguments(words, (arguments,), arguments.__doc__ or "", prog=f"lm-trials llama2c {name}")
    return program(args)


if __name__ == "__main__":
    main()
