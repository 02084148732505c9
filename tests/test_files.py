"""Names of folders; writing; checksums: the same for the same files, and each kind of damage named."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_trials.files import check_writable, damaged, file_sums, name_fault, plain_name, write_file
from tests.refusals import usage_error


def write(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


FILES = {"b/model.safetensors": b"weights" * 1000, "optimizer.pt": b"moments", "a/empty": b""}


def test_sums_are_sorted_by_path_and_do_not_depend_on_who_wrote_first(tmp_path):
    one = file_sums(write(tmp_path / "one", FILES))
    assert one == file_sums(write(tmp_path / "two", dict(reversed(FILES.items()))))
    assert list(one) == ["a/empty", "b/model.safetensors", "optimizer.pt"]
    assert one["b/model.safetensors"]["bytes"] == 7000
    assert damaged(tmp_path / "two", one) == []


def test_what_is_skipped_is_a_file_or_a_folder_and_never_a_name_that_only_begins_so(tmp_path):
    write(tmp_path, FILES)
    assert list(file_sums(tmp_path, skip=("optimizer.pt", "b"))) == ["a/empty"]
    assert list(file_sums(tmp_path, skip=("optimizer", "model.safetensors"))) == sorted(FILES)


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("optimizer.pt", lambda file: file.unlink(), "optimizer.pt is missing"),
        ("optimizer.pt", lambda file: file.write_bytes(b"mome"), "optimizer.pt has 4 bytes instead of the 7 that"),
        ("a/empty", lambda file: file.write_bytes(b"x"), "a/empty has 1 bytes instead of the 0 that were written"),
        (
            "b/model.safetensors",
            lambda file: file.write_bytes(b"Weights" + b"weights" * 999),
            "b/model.safetensors has other content than when it was written (sha256)",
        ),
    ],
)
def test_each_damage_is_one_text_that_names_the_file(tmp_path, name, damage, said):
    sums = file_sums(write(tmp_path, FILES))
    damage(tmp_path / name)
    (fault,) = damaged(tmp_path, sums)
    assert fault.startswith(said)


def test_files_added_later_are_no_damage_and_a_missing_folder_is_all_of_it(tmp_path):
    sums = file_sums(write(tmp_path / "whole", FILES))
    write(tmp_path / "whole", {"later.json": b"{}"})
    assert damaged(tmp_path / "whole", sums) == []
    assert damaged(tmp_path / "nowhere", sums) == [f"{name} is missing" for name in sorted(FILES)]


@given(st.binary(min_size=1, max_size=50), st.data())
def test_any_one_changed_byte_is_seen(tmp_path_factory, content, data):
    folder = write(tmp_path_factory.mktemp("folder"), {"file": content})
    sums = file_sums(folder)
    at = data.draw(st.integers(0, len(content) - 1))
    other = data.draw(st.integers(0, 255).filter(lambda value: value != content[at]))
    (folder / "file").write_bytes(content[:at] + bytes([other]) + content[at + 1 :])
    assert damaged(folder, sums) == ["file has other content than when it was written (sha256)"]


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    def half(place):
        place.write_text("tw")
        raise OSError("no room")

    place = write_file(tmp_path / "tables" / "a.csv", "one", synced=True)
    with pytest.raises(OSError, match="no room"):
        write_file(place, half)
    assert place.read_text() == "one"
    assert [path.name for path in place.parent.iterdir()] == ["a.csv"]
    assert write_file(place, lambda unfinished: unfinished.write_text("two")).read_text() == "two"
    assert write_file(place, b"three").read_text() == "three"


def test_a_place_that_can_be_written_to_is_left_as_it_was(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("a")
    before = sorted(tmp_path.rglob("*"))
    for name in ("", "new", "new/deep/er", "full", "full/new", "n" * 255):
        check_writable("--output_dir", tmp_path / name)
        assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("file", "Not a directory"),
        ("file/below/it", "file: Not a directory"),
        ("link", "No such file or directory"),  # a link to nothing, over which no folder can be made
        ("n" * 256, "File name too long"),
        ("a/" * 3000, "File name too long"),
        ("/proc/new", "/proc: No such file or directory"),  # nobody may write there, whatever its permissions say
        ("/dev/null/new", "/dev/null: Not a directory"),
    ],
)
def test_a_place_that_cannot_be_written_to_is_one_line(tmp_path, name, reason):
    (tmp_path / "file").write_text("a")
    (tmp_path / "link").symlink_to("nowhere")
    line = usage_error(check_writable, "--output_dir", tmp_path / name)
    assert line.startswith(f"--output_dir {tmp_path / name} cannot be written to (")
    assert line.endswith(f"{reason}); give another folder")


@pytest.mark.parametrize("content", ["text", b"bytes", lambda place: place.write_text("text")])
def test_a_file_that_cannot_be_written_is_named_by_its_own_name(tmp_path, content):
    (tmp_path / "in the way").mkdir()
    with pytest.raises(OSError, match="Is a directory") as raised:
        write_file(tmp_path / "in the way", content)
    assert raised.value.filename == str(tmp_path / "in the way")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in the way"]


NAMES = st.text() | st.text("./\\\\+- \0\na", max_size=4) | st.text("é日😀", min_size=40, max_size=110)


@given(name=NAMES)
def test_a_name_without_fault_is_a_folder_inside_the_one_above(tmp_path_factory, name):
    above = tmp_path_factory.getbasetemp()
    if name_fault(name) is None:
        place = above / name
        place.mkdir()
        assert place.resolve().parent == above.resolve()
        assert not name.startswith(("-", "."))
        place.rmdir()


@pytest.mark.parametrize(
    "name", ["", " ", ".", "..", ".a", "-a", " a", "a ", "a.", "../a", "a/b", "/a", "a\\b", "a+b", "a\0", "a\n",
             "a\u202e", "\ud800", "NUL", "com1.txt", "a" * 201, "é" * 101],
)  # fmt: skip
def test_a_name_that_is_no_folder_is_refused(name):
    assert name_fault(name)


@pytest.mark.parametrize(
    "name", ["a", "a b", "a.b", "a-b_c", "_a", "a,b", "lr=1e-3", "日本", "null", "a" * 200, "é" * 100]
)
def test_a_plain_name_is_taken(name):
    assert name_fault(name) is None


@given(text=NAMES)
def test_any_text_becomes_part_of_a_name(text):
    name = plain_name(text)
    assert name_fault(name.replace("+", "_")) in (None, "is a device's name on Windows")
    assert len(name.encode()) <= 100
    assert plain_name(name) == name
    if name_fault(text) is None and len(text.encode()) <= 100:
        assert name == text
