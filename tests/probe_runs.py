"""What tests of the probes' commands share: the one line of an error, a row by its columns, a written table."""

import csv

import pytest


def refused_by(main, capsys, *argv):
    """Run a command with a mistake; return the one line of its error."""
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in argv])
    assert left.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    return line


def row(rows, **wanted):
    """The one row with these values."""
    found = [r for r in rows if all(r.get(key) == value for key, value in wanted.items())]
    assert len(found) == 1, f"{len(found)} rows are {wanted}"
    return found[0]


def table(path):
    """The rows of a CSV file, as texts."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
