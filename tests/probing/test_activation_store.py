"""Activations of many texts: the same in memory and in files, text by text, in memory that does not grow."""

import ctypes
import gc
import io
import socket
import threading

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import hooks
from tiny_models import tiny_model

from lm_trials.console import UsageError
from lm_trials.probing import activation_store
from lm_trials.probing.activation_store import ActivationStore, captured, padded, reduced
from lm_trials.probing.capture import SITES, Capture

LLAMA, GPT2 = tiny_model("llama"), tiny_model("gpt2")
WITHOUT_ATTENTION = [site for site in SITES if site != "attention"]


def texts(count, longest=20, seed=0):
    draw = np.random.default_rng(seed)
    return [draw.integers(3, 60, draw.integers(1, longest + 1)) for _ in range(count)]


def collect(documents, sites=("hidden", "values"), model=LLAMA, **more):
    return ActivationStore.collect(model, documents, sites, description=None, **more)


def expected(model, documents, site, layer, positions=None):
    """The rows of one site, each text read by itself."""
    rows = []
    for number, ids_T in enumerate(documents):
        of_it = positions if positions is None or isinstance(positions, int) else [positions[number]]
        with torch.no_grad(), Capture(model, {site: [layer]}, of_it) as capture:
            model(torch.as_tensor(ids_T)[None])
        rows.append(capture.activations.of(site, layer).numpy())
    return np.concatenate(rows)


@pytest.mark.parametrize("model", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_memory_and_files_hold_the_same_bytes_in_the_order_of_the_texts(model, tmp_path):
    documents = texts(23)
    stores = {
        "memory": collect(documents, WITHOUT_ATTENTION, model, batch_size=5),
        "temporary": collect(documents, WITHOUT_ATTENTION, model, batch_size=5, in_memory=0),
        "folder": collect(documents, WITHOUT_ATTENTION, model, batch_size=5, folder=tmp_path / "store"),
        "opened": ActivationStore.open(tmp_path / "store"),
    }
    memory = stores["memory"]
    assert set(memory.arrays) == {(site, layer) for site, layer in memory.arrays}
    assert [layer for site, layer in memory.arrays if site == "hidden"] == [0, 1, 2]
    for name, store in stores.items():
        assert list(store.arrays) == list(memory.arrays)
        for site, array in store.arrays.items():
            assert (array.dtype, array.shape) == (np.dtype("<f4"), memory[site].shape)
            assert array.tobytes() == memory[site].tobytes()
            assert isinstance(array, np.memmap) == (name != "memory")
        assert store.text_N.tolist() == [n for n, ids_T in enumerate(documents) for _ in ids_T]
        assert store.position_N.tolist() == [place for ids_T in documents for place in range(len(ids_T))]
        assert store.folder == (tmp_path / "store" if name in ("folder", "opened") else None)
    assert memory["values", 0].shape == (sum(map(len, documents)), 2, 4 if model is LLAMA else 8)
    assert np.allclose(memory["hidden", 2], expected(model, documents, "hidden", 2), atol=1e-4)
    assert not np.allclose(memory["hidden", 2], expected(model, documents[::-1], "hidden", 2), atol=1e-2)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_lengths_positions_and_batches_give_the_rows_of_each_text(data):
    lengths = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=7))
    draw = np.random.default_rng(data.draw(st.integers(0, 9)))
    documents = [draw.integers(3, 60, length) for length in lengths]
    listed = [data.draw(st.lists(st.integers(-length, length - 1), max_size=3)) for length in lengths]
    positions = data.draw(st.one_of(st.none(), st.integers(1, 14), st.just(listed)))
    if not isinstance(positions, int | None) and not any(positions):
        positions[0].append(0)
    how = {"positions": positions, "batch_size": data.draw(st.integers(1, 8))}
    store = collect(documents, ["hidden"], **how)
    files = collect(documents, ["hidden"], in_memory=0, **how)
    rows = expected(LLAMA, documents, "hidden", 1, positions)
    assert store["hidden", 1].shape == rows.shape
    np.testing.assert_allclose(store["hidden", 1], rows, atol=1e-4)
    assert all(store[site].tobytes() == files[site].tobytes() for site in store.arrays)
    for name in ("text_N", "position_N"):
        assert np.array_equal(getattr(store, name), getattr(files, name))
    wanted = []
    for text, length in enumerate(lengths):
        chosen = range(length) if positions is None else range(length)[-positions:] if isinstance(positions, int) else (
            [position % length for position in positions[text]]
        )  # fmt: skip
        wanted += [(text, position) for position in chosen]
    assert list(zip(store.text_N.tolist(), store.position_N.tolist(), strict=True)) == wanted


@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(1, 15), min_size=1, max_size=9), size=st.integers(1, 10))
def test_each_text_is_in_one_batch_and_reduced_in_its_place(lengths, size):
    documents = [np.full(length, 3 + number) for number, length in enumerate(lengths)]
    batches = list(captured(LLAMA, documents, {"hidden": [0]}, batch_size=size, description=None))
    assert sorted(number for found in batches for number in found.document_B.tolist()) == list(range(len(lengths)))
    assert all(len(found.document_B) <= size for found in batches)
    assert [length for found in batches for length in found.lengths_B.tolist()] == sorted(lengths, reverse=True)
    rows = reduced(iter(batches), len(lengths), lambda found: {"mean": found.means("hidden", 0), "n": found.lengths_B})
    embedded_VD = LLAMA.get_input_embeddings().weight.detach().numpy()
    np.testing.assert_allclose(rows["mean"], embedded_VD[3 : 3 + len(lengths)], atol=1e-6)
    assert rows["n"].tolist() == lengths


def test_between_batches_the_model_is_free():
    documents = texts(6)
    before = hooks(LLAMA)
    seen = 0
    for found in captured(LLAMA, documents, ["hidden", "attention"], batch_size=2, description=None):
        assert (hooks(LLAMA), LLAMA.config._attn_implementation) == (before, "sdpa")
        written = LLAMA.generate(
            torch.tensor([[5, 6]]), attention_mask=torch.ones(1, 2), max_new_tokens=2, pad_token_id=0
        )
        assert written.shape == (1, 4)  # which a capture refuses
        seen += len(found.document_B)
    assert seen == 6


def test_what_is_captured_can_be_trained_on():
    (found,) = captured(LLAMA, texts(3), ["hidden"], description=None)
    lens = torch.nn.Linear(16, 16)
    lens(found.of("hidden", 1)).square().mean().backward()
    assert lens.weight.grad.abs().max() > 0


def test_padding_is_zero_and_masked():
    ids_BT, mask_BT = padded([np.array([5, 6, 7], dtype=np.uint16), [8]])
    assert ids_BT.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert mask_BT.tolist() == [[1, 1, 1], [1, 0, 0]]


@pytest.mark.parametrize(("documents", "more", "said"), [
    ([], {}, "no texts to read; choose a data set with texts, or more of them"),
    ([np.array([5]), np.array([], dtype=int)], {}, "a text has no tokens"),
    ([np.array([5])], {"sites": ["hidden", "attention"]}, "attention weights of texts have no common shape; "
     "read them batch by batch (`captured`)"),
    ([np.array([5])], {"sites": {"hidden": [3]}}, "layer 3: LlamaForCausalLM has hidden states 0 to 2 (the embeddings "
     "are 0); give one of them"),
    ([np.array([5])], {"positions": 0}, "positions must be at least 1"),
    ([np.array([5])], {"positions": -3}, "positions must be at least 1"),
    ([np.array([5])], {"positions": [[]]}, "positions name no token of any text; give at least one"),
    ([np.array([5])], {"positions": [[0], [0]]}, "positions are given for 2 of 1 texts"),
    ([np.array([5]), np.array([5])], {"positions": [[0], [1]]}, "position 1: the text has 1 tokens; give 0 to 0"),
    ([np.full(65, 5)], {}, "a text has 65 tokens, but LlamaForCausalLM has 64 positions; give shorter texts"),
])  # fmt: skip
@pytest.mark.parametrize("place", ["memory", "temporary", "folder"])
def test_what_cannot_be_collected_is_one_line_and_leaves_nothing(documents, more, said, place, tmp_path):
    where = {"memory": {}, "temporary": {"in_memory": 0}, "folder": {"folder": tmp_path / "new" / "store"}}[place]
    before = hooks(LLAMA)
    with pytest.raises(UsageError) as raised:
        collect(documents, **{**where, **more})
    assert str(raised.value).startswith(said)
    assert "\n" not in str(raised.value)
    assert hooks(LLAMA) == before
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_way_is_left_as_it_is(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("kept")
    for place in (tmp_path / "full", tmp_path / "full" / "mine"):
        with pytest.raises(UsageError, match="is not an empty folder; choose another"):
            collect(texts(2), folder=place)
    assert (tmp_path / "full" / "mine").read_text() == "kept"
    (tmp_path / "empty").mkdir()
    assert collect(texts(2), folder=tmp_path / "empty").folder == tmp_path / "empty"


class Stop(Exception):
    pass


def at_batch(number, act):
    """`captured`, but `act` is called before batch `number`."""

    def batches(*given):
        for count, found in enumerate(captured(*given)):
            if count == number:
                act()
            yield found

    return batches


@pytest.mark.parametrize("fault", [Stop, KeyboardInterrupt, OSError])
@pytest.mark.parametrize("place", ["memory", "temporary", "folder"])
def test_a_collection_that_fails_leaves_nothing_behind(fault, place, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)

    def fail():
        failed.append(True)
        raise fault

    failed = []
    monkeypatch.setattr(activation_store, "captured", at_batch(4, fail))
    more = {"memory": {}, "temporary": {"in_memory": 0}, "folder": {"folder": tmp_path / "a" / "store"}}[place]
    before, files = hooks(LLAMA), psutil.Process().num_fds()
    with pytest.raises(fault) as raised:
        collect(texts(20), batch_size=2, **more)
    assert failed
    assert list(tmp_path.rglob("*")) == []
    assert hooks(LLAMA) == before  # while the error is still held
    assert psutil.Process().num_fds() == files
    del raised
    monkeypatch.undo()
    assert len(collect(texts(20), batch_size=2)["hidden", 1]) == sum(map(len, texts(20)))


class FullDisk(io.BytesIO):
    def write(self, rows):
        if len(rows) > 128:  # the header is there, the rows do not fit
            raise OSError(28, "No space left on device")
        return super().write(rows)


def test_the_bar_ends_before_an_error_is_told(monkeypatch):
    def bar(items, *_):
        try:
            yield from items
        finally:
            ended.append(True)

    ended = []
    monkeypatch.setattr(activation_store, "progress", bar)
    monkeypatch.setattr("tempfile.TemporaryFile", FullDisk)
    with pytest.raises(OSError, match="No space left") as raised:
        ActivationStore.collect(LLAMA, texts(5), in_memory=0)
    assert ended  # while the error is held
    assert raised.value.errno == 28


def test_a_killed_collection_leaves_nothing_that_stays(tmp_path, monkeypatch):
    """Files without a name go with the process, however it ends; what is left of a named one, with the next."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    seen = []
    look = at_batch(1, lambda: seen.append([path.name for path in tmp_path.rglob("*")]))
    monkeypatch.setattr(activation_store, "captured", look)
    collect(texts(9), ["hidden"], batch_size=5, in_memory=0)
    assert seen == [[]]

    gone = 2**22 + 1  # more than a process id can be
    left = tmp_path / f".store.unfinished-{socket.gethostname()}-{gone}"
    left.mkdir()
    (left / "hidden-00.npy").write_bytes(b"half")
    collect(texts(9), ["hidden"], batch_size=5, folder=tmp_path / "store")
    assert "hidden-02.npy" in seen[-1]  # so that a look sees names
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_temporary_store_goes_with_the_store(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)

    def maps():
        return sum(str(tmp_path) in entry.path for entry in psutil.Process().memory_maps(grouped=False))

    before, files = maps(), psutil.Process().num_fds()
    store = collect(texts(9), ["hidden"], in_memory=0)
    rows = store["hidden", 1]
    assert list(tmp_path.iterdir()) == []
    assert maps() == before + 3  # what holds the space on the disk
    total = float(rows.sum())
    del store
    assert float(rows.sum()) == total  # an array outlives its store
    del rows
    assert (maps(), psutil.Process().num_fds()) == (before, files)


DAMAGES = {
    "hidden-01.npy": [lambda path: path.write_bytes(path.read_bytes()[:-1]), lambda path: path.unlink()],
    "values-00.npy": [lambda path: path.write_bytes(b"not an array"), lambda path: path.write_bytes(b"")],
    "text.npy": [lambda path: np.save(path, np.arange(3)), lambda path: np.save(path, np.array([{}] * 9))],
    "position.npy": [lambda path: path.unlink(), lambda path: np.save(path, np.float32(3))],
    "activations.json": [
        lambda path: path.write_text("{"),
        lambda path: path.write_text("{}"),
        lambda path: path.write_text('{"rows": 3, "sites": [1]}'),
        lambda path: path.unlink(),
    ],
}


@pytest.mark.parametrize(("name", "damage"), [(name, each) for name, kinds in DAMAGES.items() for each in kinds])
def test_a_damaged_file_is_named(name, damage, tmp_path):
    folder = tmp_path / "store"
    collect(texts(4), folder=folder)
    assert len(ActivationStore.open(folder)["hidden", 1])
    damage(folder / name)
    with pytest.raises(UsageError) as raised:
        ActivationStore.open(folder)
    said = str(raised.value)
    assert said.startswith(str(folder / name))
    assert "\n" not in said
    assert "restore it" in said or f"remove {folder} and capture again" in said


def peak_growth(count, **more):
    """How many bytes this process grows at most, above what it had, while texts are collected."""
    documents = [np.full(50, 3 + number % 50) for number in range(count)]
    process, stop, peaks = psutil.Process(), threading.Event(), [0]
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):  # or arrays take what earlier tests freed
        libc.malloc_trim(0)
    before = process.memory_info().rss

    def watch():
        while not stop.wait(0.002):
            peaks.append(process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        store = collect(documents, ["hidden", "mlp", "values", "keys", "heads"], batch_size=40, **more)
        peaks.append(process.memory_info().rss)
    finally:
        stop.set()
        watcher.join()
    assert len(store["hidden", 0]) == 50 * count
    return max(peaks) - before, sum(array.nbytes for array in store.arrays.values())


def test_memory_does_not_grow_with_the_number_of_texts(tmp_path):
    """In files; and in memory it does, which is what this would see."""
    peak_growth(100, in_memory=0)  # libraries and threads that are loaded once
    small, _ = peak_growth(100, folder=tmp_path / "small")
    grown, size = peak_growth(1200, folder=tmp_path / "large")
    nameless, _ = peak_growth(1200, in_memory=0)
    memory, _ = peak_growth(1200, in_memory=size)
    assert size > 30e6
    assert max(grown, nameless) < small + 0.15 * size
    assert memory > 0.8 * size
