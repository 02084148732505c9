"""What a person sees."""

import errno
import io
import os
import sys

import pytest
import rich.console

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


def test_a_full_disk_is_one_line_and_another_fault_of_the_system_keeps_its_traceback(capsys):
    @script
    def main(number):
        raise OSError(number, os.strerror(number), "runs/a/model")

    with pytest.raises(SystemExit) as left:
        main(errno.ENOSPC)
    assert left.value.code == 2
    assert (
        capsys.readouterr().err
        == "error: runs/a/model cannot be written (No space left on device); make room and try again\n"
    )
    with pytest.raises(OSError, match="Input/output error"):
        main(errno.EIO)


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


def test_bars_of_an_instant_are_hidden_and_others_are_not(monkeypatch):
    load_libraries()
    from transformers.utils import logging

    for name, hidden in (("Loading weights", True), ("Writing model shards", True), ("Downloading", False)):
        bar = logging.tqdm(range(3), desc=name, file=io.StringIO())
        assert bar.disable is hidden
        bar.close()
