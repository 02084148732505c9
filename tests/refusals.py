"""What is refused: by a function with an error of one line, by a command with that line on stderr and status 2."""

import pytest

from lm_trials.console import UsageError


def usage_error(function, *args, **kwargs):
    """Call a function that refuses what it is given; returns its one line."""
    with pytest.raises(UsageError) as raised:
        function(*args, **kwargs)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def error_line(capsys, main, *argv):
    """Run a command that is refused; returns its one line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        main(list(map(str, argv)))
    assert left.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line
