"""Write a commented trial file to start from.

lm-trials new trials/my_claim.yaml
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lm_trials.console import UsageError, script, show_facts
from lm_trials.files import check_writable, write_file
from lm_trials.flags import option, parse_arguments

EXAMPLE = Path(__file__).with_name("example.yaml")


@dataclass
class NewArguments:
    """Where the file goes."""

    output: str = option("trials/my_claim.yaml", filled=True, help="The new file; the flag itself may be omitted.")


@script
def main(argv: list[str] | None = None) -> Path:
    """Write the example under another name; returns its path."""
    (args,) = parse_arguments(argv, (NewArguments,), __doc__ or "", prog="lm-trials new", first="output")
    path = Path(args.output)
    if path.suffix not in (".yaml", ".yml"):
        raise UsageError(f"--output {path} is not the name of a YAML file; end it with .yaml")
    if path.exists():
        raise UsageError(f"{path} exists; give another name")
    check_writable("--output", path.parent)
    write_file(path, EXAMPLE.read_text(encoding="utf-8").replace("THIS_FILE", str(path)))
    show_facts("new trial", {"file": f"{path}: edit it, then", "next": f"lm-trials plan {path}"})
    return path
