"""What a person sees."""

import errno
import io
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import rich.console
import torch

from lm_trials.console import (
    FILE_WIDTH,
    UsageError,
    command_line,
    is_main_process,
    load_libraries,
    note,
    progress,
    script,
    show_facts,
    show_table,
)

COLUMNS = ["model\ndata", "nats per token", "perplexity", "accuracy", "bits per byte", "stories\ntokens"]
CELL = "1.346\n[1.337, 1.354]"
ROWS = [["runs/demo\nvalidation", *[CELL] * 4, "3,117\n1,223,607"], ["  no Foreshadowing", *[CELL] * 4, "1,000\n9,999"]]


@pytest.fixture
def shown(monkeypatch):
    """Return what a terminal of a width shows."""

    def at(width, show, *args):
        stream = io.StringIO()
        console = rich.console.Console
        monkeypatch.setattr(
            rich.console,
            "Console",
            lambda **more: console(file=stream, width=width, force_terminal=True, no_color=True, **more),
        )
        show(*args)
        monkeypatch.setattr(rich.console, "Console", console)
        # Styles but no text are taken out.
        return "".join(
            part.partition("m")[2] if number else part for number, part in enumerate(stream.getvalue().split("\x1b["))
        )

    return at


@pytest.mark.parametrize("width", [80, 100, 140])
def test_a_table_fits_and_nothing_is_cut(shown, width):
    text = shown(width, show_table, "evaluation", COLUMNS, ROWS, "[95 % interval]")
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    assert "…" not in text
    for word in ("evaluation", "nats per token", "runs/demo", "no Foreshadowing", "[95 % interval]"):
        assert word in text
    assert text.count("[1.337, 1.354]") == 8
    assert text.count("1,223,607") == 1
    # Wide: all numbers of a row in two lines.  Narrow: a block for each row.
    assert ("1.346  [1.337, 1.354]" in text) == (width == 80)


def test_a_file_is_taken_to_be_wide_unless_it_is_told(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    show_table("evaluation", COLUMNS, ROWS)
    assert "1.346  [1.337, 1.354]" not in capsys.readouterr().out
    show_facts("done", {"folder": "x" * (FILE_WIDTH - 20)})
    assert "x" * (FILE_WIDTH - 20) in capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", "80")
    show_table("evaluation", COLUMNS, ROWS)
    assert "1.346  [1.337, 1.354]" in capsys.readouterr().out


@pytest.mark.parametrize("width", [80, 100, 140])
def test_a_long_fact_is_folded_and_markup_in_it_is_text(shown, width):
    path = "runs/" + "long/" * 30 + "[bold]end"
    text = shown(width, show_facts, "the [red] run", {"results": path, "steps": "3"})
    assert "the [red] run" in text
    assert path in "".join(line.removeprefix("results").strip() for line in text.splitlines())
    lines = text.splitlines()
    assert path in lines[-2]  # whole, so that it can be copied
    assert max(len(line) for line in lines if path not in line) <= width


def test_prose_is_wrapped_and_a_command_is_one_line(shown):
    command = command_line("evaluate", model_dir="runs/a b", dataset_name="x" * 60, streaming=None, data_cache_dir="d")
    lines = shown(60, show_facts, "done", {"loss": "one two three " * 10, "next": command}).splitlines()
    assert lines[-1] == f"next  {command}"
    assert "--model_dir 'runs/a b'" in command
    assert "streaming" not in command
    assert len(lines) > 4
    assert all(line.startswith("      ") for line in lines[3:-1])
    assert max(map(len, lines[:-1])) <= 60


def test_a_table_without_caption_or_rows_is_shown(capsys):
    show_table("nothing", COLUMNS, [])
    assert "nats per token" in capsys.readouterr().out


def test_only_the_main_process_speaks(capsys, monkeypatch):
    @script
    def main():
        raise UsageError("wrong")

    def speak():
        show_table("a table", COLUMNS, ROWS)
        show_facts("a fact", {"a": "b"})
        note("n")
        assert list(progress([1, 2], "going", "things")) == [1, 2]
        with pytest.raises(SystemExit) as left:
            main()
        assert left.value.code == 2
        return capsys.readouterr()

    assert is_main_process()
    spoken = speak()
    assert all(word in spoken.out + spoken.err for word in ("a table", "a fact", "n\n", "going", "error: wrong\n"))
    monkeypatch.setenv("RANK", "1")
    assert not is_main_process()
    assert speak() == ("", "")


def test_a_users_mistake_is_one_line_and_ours_keeps_its_traceback(capsys):
    @script
    def main(argv=None):
        if argv:
            raise UsageError("--block_size 0\n  is no length;   give 2")
        raise ZeroDivisionError

    with pytest.raises(SystemExit) as left:
        main(["x"])
    assert left.value.code == 2
    assert capsys.readouterr().err == "error: --block_size 0 is no length; give 2\n"
    with pytest.raises(ZeroDivisionError):
        main()


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/a"),
            "runs/a: No space left on device; make room and try again",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "runs/a"), "runs/a: Permission denied"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 300), "x" * 300 + ": File name too long"),
        (OSError(errno.EIO, "Input/output error"), "output: Input/output error"),
        (OSError("owner/model is no model\n  on the Hub"), "owner/model is no model on the Hub"),
    ],
)
def test_what_the_system_refuses_is_one_line_with_the_file_first(fault, line, capsys):
    @script
    def main():
        raise fault

    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert capsys.readouterr().err == f"error: {line}\n"


@pytest.mark.parametrize(
    "fault",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\n  See PyTorch's notes"),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ],
)
def test_a_full_memory_is_one_line_and_another_fault_of_torch_keeps_its_traceback(fault, capsys):
    @script
    def main(error):
        raise error

    with pytest.raises(SystemExit) as left:
        main(fault)
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: the memory is full (")
    with pytest.raises(RuntimeError, match="shape"):
        main(RuntimeError("mat1 and mat2 shape mismatch"))


def test_ctrl_c_is_one_line_and_the_shells_status(capsys):
    @script
    def main(argv=None):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 130
    assert capsys.readouterr().err.strip().startswith("Interrupted. Run the same command again")


def test_progress_counts_by_size(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    assert list(progress(["ab", "cde"], "reading", "letters", total=5, size=len)) == ["ab", "cde"]
    assert "5.00/5.00" in stream.getvalue()


def test_a_note_is_above_an_open_bar(capsys):
    for _ in progress(range(2), "reading", "stories"):
        note("note: one column is left out")
    lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
    assert lines.count("note: one column is left out") == 2
    assert lines[-1].startswith("reading: 2.00 stories")


def test_an_open_bar_ends_its_line_before_an_error(capsys):
    @script
    def main():
        held.append(progress(range(10), "reading", "stories"))  # as the Trainer holds its own bar
        next(held[0])
        raise UsageError("--flag 1 is wrong; give 2")

    held = []
    with pytest.raises(SystemExit):
        main()
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "error: --flag 1 is wrong; give 2"
    assert any("reading" in line for line in lines[:-1])


def test_deepspeed_prints_no_device_at_its_import_and_other_news():
    load_libraries()
    for text, shown in (("Setting accelerator to CPU. If you have GPU", False), ("ZeRO is not supported", True)):
        assert bool(logging.getLogger("DeepSpeed").filter(logging.makeLogRecord({"msg": text}))) is shown


def test_bars_of_an_instant_are_hidden_and_others_are_not(monkeypatch):
    load_libraries()
    from transformers.utils import logging as bars

    for name, hidden in (("Loading weights", True), ("Writing model shards", True), ("Downloading", False)):
        bar = bars.tqdm(range(3), desc=name, file=io.StringIO())
        assert bar.disable is hidden
        bar.close()


REPOSITORY = Path(__file__).resolve().parents[1]
TEXT = "Ä story — 😀\n"  # U+2014 and the emoji are not in ASCII, the emoji not in cp1252
COMMAND = [sys.executable, "-c"]
SHOWS = f"""
from lm_trials.console import note, script, show_facts, show_table
@script
def main():
    show_table({TEXT!r}, ["a", "b"], [[{TEXT!r}, "1"]], caption={TEXT!r})
    show_facts({TEXT!r}, {{"fact": {TEXT!r}}})
    print({TEXT!r})
    note({TEXT!r})
main()
"""
PRINTS = """
from lm_trials.console import script
@script
def main():
    for number in range(100_000):
        print(number)
main()
"""


def run(words, **settings):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **settings.pop("env", {})}
    return subprocess.run(words, env=environment, capture_output=True, timeout=60, check=False, **settings)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8"])
@pytest.mark.parametrize("columns", ["0", "1", "", "abc", "80", "100000"])
def test_every_encoding_and_width_shows_the_text_or_escapes_it(encoding, columns):
    done = run([*COMMAND, SHOWS], env={"PYTHONIOENCODING": encoding, "COLUMNS": columns})
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False)
    shown, said = done.stdout.decode(encoding), done.stderr.decode(encoding)
    escaped = TEXT.encode(encoding, "backslashreplace").decode(encoding).strip()
    assert escaped in shown
    assert escaped in said
    assert ("\\U0001f600" in shown) == (encoding != "utf-8")


@pytest.mark.parametrize("code", [SHOWS, PRINTS], ids=["little", "much"])
@pytest.mark.parametrize(
    ("after", "status", "said"),
    [
        ("| true", 1, ""),
        ("> /dev/full", 2, "error: output: No space left on device; make room and try again"),
        (">&-", 0, ""),
        ("> /dev/null", 0, ""),
    ],
)
def test_a_reader_that_has_left_ends_the_command_quietly(code, after, status, said, tmp_path):
    (tmp_path / "shows.py").write_text(code.replace(f"    note({TEXT!r})\n", "    import time; time.sleep(0.2)\n"))
    line = f"set -o pipefail; {sys.executable} shows.py {after}"
    done = run(["bash", "-c", line], cwd=tmp_path)
    assert (done.returncode, done.stderr.decode().strip()) == (status, said)


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT"])
@pytest.mark.parametrize("value", ["abc", "-1", "1.5", "0", ""])
def test_what_launchers_set_must_be_numbers(name, value):
    done = run([sys.executable, "-m", "lm_trials.cli", "--version"], env={name: value})
    wrong = value != "0"
    assert done.returncode == (2 if wrong else 0)
    line = f"error: {name}={value} is not a number; unset this environment variable\n" if wrong else ""
    assert done.stderr.decode() == line


@pytest.mark.parametrize(
    "words", [["--dataset_name", b"st\xffories.jsonl"], [b"train\xff"], ["--config", b"\xff.yaml"]]
)
def test_bytes_that_are_no_text_are_one_line(words, tmp_path):
    done = run([sys.executable, "-m", "lm_trials.cli", "cache", *words], cwd=tmp_path)
    assert done.returncode == 2
    lines = done.stderr.decode().splitlines()
    assert len([line for line in lines if line.startswith("error: ")]) == 1
    assert b"Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
