"""What a person sees of a script: its one-line errors, its tables, its progress bars.

A user's mistake raises `UsageError` anywhere in the library; the script that called it prints the one line and
leaves with status 2.  Everything else that goes wrong is ours and keeps its traceback.
"""

from __future__ import annotations

import errno
import functools
import io
import logging
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from typing import Any, NoReturn, TypeVar

Result = TypeVar("Result")
Item = TypeVar("Item")
# A file or pipe has no width of its own; rich's 80 columns would cut paths and numbers.
FILE_WIDTH = 110
COMMANDS = ("lm-trials ", "accelerate ", "tensorboard ")


class UsageError(ValueError):
    """A mistake of the user's: its text names the value, what would have been right and the next step."""


def is_main_process() -> bool:
    """Whether this process is the one that speaks, known before torch is loaded (launchers set `RANK`)."""
    rank = os.environ.get("RANK", "0")
    return not rank.isdecimal() or int(rank) == 0


def script(main: Callable[..., Result]) -> Callable[..., Result]:
    """Let `main` end with one clear line and status 2 where the user made a mistake or the system refused a file.

    The status is 130 after Ctrl-C, and 1, without a word, when the reader of the output has left (`| head -1`).

    >>> @script
    ... def main(argv=None):
    ...     raise UsageError("--block_size 0 is too small; give at least 2")
    >>> main()
    Traceback (most recent call last):
    SystemExit: 2
    """

    @functools.wraps(main)
    def wrapped(*args: Any, **kwargs: Any) -> Result:
        try:
            _prepare_process()
            try:
                return main(*args, **kwargs)
            finally:
                _flush()
        except UsageError as error:
            _stop(str(error))
        except BrokenPipeError:
            raise SystemExit(1) from None  # as rich does
        except OSError as error:
            _stop(_reason(error))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            _stop(
                f"the memory is full ({' '.join(str(error).split())[:200]}); give a smaller batch (training sees the "
                "same examples with as much more gradient accumulation), shorter texts or a smaller model"
            )
        except KeyboardInterrupt:
            _close_bars()
            note("\nInterrupted. Run the same command again to resume.")
            raise SystemExit(128 + signal.SIGINT) from None

    return wrapped


def _prepare_process() -> None:
    """Let every text be printed, whatever the terminal's encoding; check what launchers set; silence one warning."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # bitsandbytes warns at every import on a CPU with AVX512-BF16; its kernel from the Hub is never used here.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel("ERROR")
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT"):
        if not os.environ.get(name, "0").isdecimal():
            raise UsageError(f"{name}={os.environ[name]} is not a number; unset this environment variable")


def _flush() -> None:
    """Write what is printed; where that fails, Python would try again at its exit, with lines of its own."""
    try:
        if sys.stdout:  # None where it is closed
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise


def _stop(message: str) -> NoReturn:
    if is_main_process():
        _close_bars()
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2) from None


def _reason(error: OSError) -> str:
    """Return what the system or a library says of a file, the file first.

    >>> _reason(FileNotFoundError(errno.ENOENT, "No such file or directory", "runs/a"))
    'runs/a: No such file or directory'
    """
    if error.strerror is None:  # a library's own
        return str(error)
    advice = "; make room and try again" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else ""
    return f"{error.filename or 'output'}: {error.strerror}{advice}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch (CUDA, MPS or CPU) or Python says that the memory is full.

    >>> is_out_of_memory(RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    True
    """
    return isinstance(error, MemoryError) or any(
        text in str(error) for text in ("out of memory", "can't allocate memory")
    )


def _close_bars() -> None:
    """End the lines of progress bars that are open, so that what is printed next has a line of its own."""
    if "tqdm" in sys.modules:
        for bar in list(sys.modules["tqdm"].tqdm._instances):
            bar.close()


def load_libraries() -> None:
    """Import torch and transformers, which takes seconds, with a line about it; hide the shortest progress bars."""
    if "transformers" not in sys.modules:
        note("loading torch and transformers ...")
    import torch  # noqa: F401 - most of the time is torch's
    from transformers.utils.logging import set_tqdm_hook

    set_tqdm_hook(_bar)
    # accelerate imports DeepSpeed wherever it is installed, which then prints the device that it has found.
    logging.getLogger("DeepSpeed").addFilter(lambda record: not record.getMessage().startswith("Setting "))


def _bar(bar: Callable[..., Any], args: tuple[Any, ...], settings: dict[str, Any]) -> Any:
    """Make a progress bar of transformers, hidden where it counts the tensors or files of one model."""
    if settings.get("desc") in ("Loading weights", "Writing model shards"):
        settings = {**settings, "disable": True}
    return bar(*args, **settings)


def did_you_mean(value: str, valid: Iterable[str]) -> str:
    """Name the nearest valid value, and all of them, for an error message.

    >>> did_you_mean("n_embed", ["n_embd", "n_layer"])
    'did you mean n_embd? valid: n_embd, n_layer'
    >>> did_you_mean("zzz", ["b", "a"])
    'valid: a, b'
    """
    names = sorted(valid)
    near = get_close_matches(value, names, n=1)
    return (f"did you mean {near[0]}? " if near else "") + "valid: " + ", ".join(names)


def progress(
    items: Iterable[Item],
    description: str,
    unit: str,
    total: int | None = None,
    size: Callable[[Item], int] = lambda item: 1,
) -> Iterator[Item]:
    """Show a bar on the terminal while `items` go by, each counting for `size(item)`, in the main process alone."""
    from tqdm import tqdm

    with tqdm(desc=description, unit=f" {unit}", total=total, disable=not is_main_process(), unit_scale=True) as bar:
        for item in items:
            yield item
            bar.update(size(item))


def show_facts(title: str, facts: dict[str, str]) -> None:
    """Print what is about to run or what came out, one named fact a line.

    Prose is wrapped; a command or path that is longer than the line is left whole, so that it can be copied.
    """
    if not is_main_process():
        return
    from textwrap import wrap

    from rich.text import Text

    console = _console()
    console.print(Text(f"\n{title}", style="bold"))
    place = max(map(len, facts), default=0) + 2
    for name, value in facts.items():
        lines = (
            [value]
            if value.startswith(COMMANDS)
            else wrap(value, max(console.width - place, 20), break_long_words=False, break_on_hyphens=False)
        )
        text = Text(name.ljust(place), style="dim") + Text(f"\n{' ' * place}".join(lines), style="not dim")
        console.print(text, soft_wrap=True)


def command_line(program: str, **flags: Any) -> str:
    """Return a command that can be copied; without flags that are None, False, empty or the default data folder.

    >>> command_line("train", dataset_name="my stories.jsonl", vocab_size=1000, data_cache_dir="data", append_eos=False)
    "lm-trials train --dataset_name 'my stories.jsonl' --vocab_size 1000"
    >>> command_line("compare", runs=["runs/a", "runs/b"], where=[])
    'lm-trials compare --runs runs/a runs/b'
    """
    words = ["lm-trials", *program.split()]
    for flag, value in flags.items():
        if value not in (None, False, "", []) and (flag, str(value)) != ("data_cache_dir", "data"):
            words += [f"--{flag}", *map(str, value if isinstance(value, (list, tuple)) else [value])]
    return shlex.join(words)


def show_table(title: str, columns: list[str], rows: Iterable[Iterable[str]], caption: str | None = None) -> None:
    """Print a table; all columns but the first are numbers, set to the right.

    On a terminal too narrow for it each row becomes a block with a line for each column: nothing is cut.
    """
    if not is_main_process():
        return
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    cells = [list(row) for row in rows]
    console = _console()
    table = Table(
        title=Text(title),
        caption=caption and Text(caption),
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        title_justify="left",
        caption_justify="left",
    )
    for place, column in enumerate(columns):
        table.add_column(Text(column), justify="right" if place else "left", no_wrap=True)
    for row in cells:
        table.add_row(*map(Text, row))
    if console.measure(table, options=console.options.update(max_width=1000)).maximum <= console.width:
        console.print(table)
        return
    console.print(Text(f"\n{title}", style="bold"))
    for first, *numbers in cells:
        block = Table.grid(padding=(0, 2))
        for column, number in zip(columns[1:], numbers, strict=True):
            block.add_row(Text(f"  {_unfolded(column)}", style="dim"), Text(number.replace("\n", "  ")))
        console.print(Text(_unfolded(first.strip())), block)
    if caption:
        console.print(Text(caption))


def _unfolded(text: str) -> str:
    """Return a cell's lines as one: a name cut after a slash or hyphen whole again.

    >>> _unfolded("runs/\\nbase\\nfilter-adv-\\nTwist")
    'runs/base filter-adv-Twist'
    """
    return re.sub(r"(?<=[/-])\n", "", text).replace("\n", " ")


def show_pairs(title: str, columns: tuple[str, str], pairs: Iterable[tuple[str, str]]) -> None:
    """Print pairs of texts side by side."""
    if not is_main_process():
        return
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), box=SIMPLE_HEAD, title_justify="left", show_lines=True, expand=True)
    for column in columns:
        table.add_column(Text(column), ratio=1, overflow="fold")
    for left, right in pairs:
        table.add_row(Text(left), Text(right))
    _console().print(table)


def _console() -> Any:
    """Return the place that everything is printed to: as wide as the terminal, or as a file is taken to be."""
    from rich.console import Console

    console = Console(highlight=False)
    if console.width < 1 or (not console.is_terminal and "COLUMNS" not in os.environ):  # COLUMNS=0 is "unknown"
        console.width = FILE_WIDTH
    return console


def note(text: str) -> None:
    """Say one line to the person at the terminal, in the main process alone; above a progress bar that is open."""
    if not is_main_process():
        return
    if "tqdm" in sys.modules:
        sys.modules["tqdm"].tqdm.write(text, file=sys.stderr)
    else:
        print(text, file=sys.stderr, flush=True)
