"""What the dashboard's tests share."""

import socket
from pathlib import Path

RESULTS = Path(__file__).resolve().parents[1] / "results"


def free_port():
    """Return a port that is not in use."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
