"""Pictures on disk: PNG and SVG, whole or not at all, the same bytes for the same figure."""

import struct
import xml.etree.ElementTree as ElementTree

import pytest
from matplotlib.figure import Figure

from lm_trials.reporting.pictures import DPI, save_pictures


def figure(title="layer <3> & more"):
    made = Figure(figsize=(3, 2))
    axes = made.subplots()
    axes.plot([0, 1], [1, 0])
    axes.fill_between([0, 1], [0, 0], [1, 1], alpha=0.2)
    axes.set_title(title)
    return made


def test_both_kinds_are_written_and_text_can_be_found(tmp_path):
    png, svg = save_pictures(figure(), tmp_path / "new" / "curve")
    assert [png, svg] == [tmp_path / "new" / f"curve.{kind}" for kind in ("png", "svg")]
    assert struct.unpack(">II", png.read_bytes()[16:24]) == (3 * DPI, 2 * DPI)
    words = "".join(ElementTree.parse(svg).getroot().itertext())
    assert "layer <3> & more" in words
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["curve.png", "curve.svg"]


def test_a_picture_has_no_date_and_no_chance_in_it(tmp_path):
    first, again, other = (
        [path.read_bytes() for path in save_pictures(figure(title), tmp_path / name / "curve")]
        for name, title in (("a", "one"), ("b", "one"), ("c", "two"))
    )
    assert first == again
    assert first[0] != other[0]
    assert first[1] != other[1]
    assert b"<dc:date>" not in first[1]


def test_a_dot_in_the_name_stays(tmp_path):
    assert [path.name for path in save_pictures(figure(), tmp_path / "v1.5")] == ["v1.5.png", "v1.5.svg"]


def test_a_fault_leaves_what_was_there(tmp_path, monkeypatch):
    save_pictures(figure("old"), tmp_path / "curve")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(self, path, **_):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(OSError, match="No space left") as raised:
        save_pictures(figure("new"), tmp_path / "curve")
    assert raised.value.filename == str(tmp_path / "curve.png")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
