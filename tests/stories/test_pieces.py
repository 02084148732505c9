"""Pieces: stopped anywhere and begun again, by any number of processes, a corpus has the same bytes."""

import json
import os
import threading
import time

import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given
from hypothesis import strategies as st

from lm_trials.console import UsageError
from lm_trials.data.datasets import open_dataset
from lm_trials.stories import pieces, sources
from lm_trials.stories.arrow_files import ArrowFile
from lm_trials.stories.corpora import ingest, is_corpus
from lm_trials.stories.pieces import resumable_folder
from lm_trials.stories.sources import open_source
from lm_trials.stories.workers import StoppedError, run_tasks

NUM_SHARDS, PER_SHARD = 4, 250


def shards(folder, said="Story"):
    folder.mkdir()
    for number in range(NUM_SHARDS):
        stories = [f"{said} {number} {place}." if place % 50 else " " for place in range(PER_SHARD)]
        (folder / f"data{number}.jsonl").write_text("".join(json.dumps({"text": story}) + "\n" for story in stories))
    return str(folder)


def saved(folder):
    splits = {name: [f"{name} {place}." for place in range(300)] for name in ("train", "validation")}
    rows = {name: Dataset.from_dict({"text": stories}) for name, stories in splits.items()}
    DatasetDict(rows).save_to_disk(folder)
    return str(folder)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Stop(Exception):
    """Stands for whatever ends a process."""


def stopping_after(number):
    def watch(ticks):
        for place, tick in enumerate(ticks):
            if place == number:
                raise Stop
            yield tick

    return watch


@pytest.fixture
def opened(monkeypatch):
    """The names of the files that were opened for their records."""
    names = []
    file_shards = sources.file_shards

    def noted(path, separator):
        names.append(path.name)
        return file_shards(path, separator)

    monkeypatch.setattr(sources, "file_shards", noted)
    return names


@pytest.mark.parametrize(("stop_at", "read_again"), [(0, 4), (120, 4), (260, 3), (650, 2), (999, 0)])
def test_a_stopped_reading_goes_on_after_the_last_whole_shard(tmp_path, opened, capsys, stop_at, read_again):
    source = open_source(shards(tmp_path / "source"))
    whole = ingest(source, tmp_path / "whole" / "mine")
    with pytest.raises(Stop):
        ingest(source, tmp_path / "stopped" / "mine", watch=stopping_after(stop_at))
    assert not is_corpus(tmp_path / "stopped" / "mine")
    opened.clear()
    assert ingest(source, tmp_path / "stopped" / "mine") == whole
    assert opened == [f"data{number}.jsonl" for number in range(NUM_SHARDS - read_again, NUM_SHARDS)]
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")  # and nothing hidden is left
    assert ("resuming after" in capsys.readouterr().err) == (read_again < NUM_SHARDS)


def test_a_source_that_has_changed_since_is_read_anew(tmp_path):
    with pytest.raises(Stop):
        ingest(open_source(shards(tmp_path / "one")), tmp_path / "stopped" / "mine", watch=stopping_after(700))
    other = open_source(shards(tmp_path / "two", said="Tale"))
    ingest(other, tmp_path / "stopped" / "mine")
    ingest(other, tmp_path / "whole" / "mine")
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def test_a_piece_that_a_crash_of_the_machine_left_empty_is_read_again(tmp_path):
    source = open_source(shards(tmp_path / "source"))
    with pytest.raises(Stop):
        ingest(source, tmp_path / "stopped" / "mine", watch=stopping_after(700))
    piece = next((tmp_path / "stopped").glob(".mine.reading/*/0/train.arrow"))
    piece.write_bytes(b"")
    ingest(source, tmp_path / "stopped" / "mine")
    ingest(source, tmp_path / "whole" / "mine")
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


@pytest.mark.end_to_end
@pytest.mark.parametrize("form", [shards, saved])
def test_the_number_of_processes_changes_nothing(tmp_path, monkeypatch, form):
    monkeypatch.setattr(pieces, "PIECE_ROWS", 70)
    source = form(tmp_path / "source")
    corpora = [open_dataset(source, tmp_path / str(num), num_proc=num).corpus() for num in (1, 2)]
    assert contents(corpora[0]) == contents(corpora[1])
    monkeypatch.setattr(pieces, "PIECE_ROWS", 50_000)
    assert contents(open_dataset(source, tmp_path / "other").corpus()) == contents(corpora[0])
    another = open_dataset(source, tmp_path / "other", validation_split_percentage=None, text_column="text").corpus()
    assert another.name != corpora[0].name  # the neighbour: read in another way it is another corpus


def test_a_full_disk_keeps_what_was_read(tmp_path, monkeypatch):
    source = open_source(shards(tmp_path / "source"))
    write, written = ArrowFile.write, []

    def full(self, row):
        written.append(row)
        if len(written) == 600:
            raise OSError(28, "No space left on device")
        write(self, row)

    monkeypatch.setattr(ArrowFile, "write", full)
    with pytest.raises(UsageError, match=r"cannot be written to \(No space left on device\); free some space"):
        ingest(source, tmp_path / "stopped" / "mine")
    assert len(list((tmp_path / "stopped").glob(".mine.reading/*/*"))) == 2  # and nothing unfinished fills the disk
    ingest(source, tmp_path / "stopped" / "mine")
    ingest(source, tmp_path / "whole" / "mine")
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def test_a_broken_shard_in_another_process_is_one_line_and_nothing_is_left(tmp_path):
    source = shards(tmp_path / "source")
    (tmp_path / "source" / "data2.jsonl").write_text('{"text": "One."}\n{"text": ')
    for num_proc in (1, 2):
        with pytest.raises(UsageError, match=r"data2\.jsonl: line 2 is not valid JSON") as error:
            open_dataset(source, tmp_path / "data", num_proc=num_proc).corpus()
        assert "\n" not in str(error.value)
        assert not (tmp_path / "data").exists()


def test_too_few_processes_are_refused(tmp_path):
    with pytest.raises(UsageError, match="--num_proc 0 is too few; give at least 1"):
        open_dataset(shards(tmp_path / "source"), tmp_path / "data", num_proc=0).corpus()


def test_one_waits_while_another_reads_the_same(tmp_path, capsys):
    order = []

    def second():
        with resumable_folder(tmp_path / "mine", "key"):
            order.append("second")

    thread = threading.Thread(target=second)
    with resumable_folder(tmp_path / "mine", "key") as work:
        thread.start()
        time.sleep(0.2)
        assert work.is_dir()
        order.append("first")
    thread.join(timeout=10)
    assert order == ["first", "second"]
    assert f"waiting for process {os.getpid()} on " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def killed_by_the_system(number):
    if number == 1:
        os._exit(9)
    yield 1


def test_what_was_read_before_the_system_ended_a_process_is_kept(tmp_path, monkeypatch, opened):
    source = open_source(shards(tmp_path / "source"))

    def ended(task, numbers, num_proc):
        yield from run_tasks(task, numbers[:3], 1)
        raise StoppedError("ended from outside")

    with monkeypatch.context() as patched:
        patched.setattr(pieces, "run_tasks", ended)
        with pytest.raises(UsageError, match="ended from outside"):
            ingest(source, tmp_path / "data" / "mine")
    opened.clear()
    ingest(source, tmp_path / "data" / "mine")
    assert opened == ["data3.jsonl"]


def broken(number):
    yield 1 // number


def test_a_process_that_the_system_ends_is_one_line():
    with pytest.raises(UsageError, match=r"ended from outside \(status 9\).*fewer processes"):
        list(run_tasks(killed_by_the_system, [0, 1, 2], num_proc=2))


def test_our_own_mistake_in_a_process_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        list(run_tasks(broken, [1, 0], num_proc=2))


@given(st.lists(st.integers(0, 2500), max_size=6))
def test_batches_of_pieces_hold_each_row_once_in_order_and_are_full(tmp_path_factory, sizes):
    import pyarrow as pa

    folder = tmp_path_factory.mktemp("pieces")
    expected, files = [], []
    for number, size in enumerate(sizes):
        values = list(range(len(expected), len(expected) + size))
        expected += values
        with pa.OSFile(str(folder / str(number)), "wb") as file:
            table = pa.table({"value": values or pa.array([], pa.int64())})
            with pa.ipc.new_stream(file, table.schema) as stream:
                stream.write_table(table, max_chunksize=700)
        files.append(pieces.Piece({"train": folder / str(number)}, size, 0))
    batches = list(pieces.split_batches(files, "train"))
    assert [value for batch in batches for value in batch["value"].to_pylist()] == expected
    assert all(batch.num_rows == pieces.WRITE_BATCH for batch in batches[:-1])
    assert all(batch.num_rows for batch in batches)
