"""See a folder of runs in the browser: curves, attention, embeddings, data, trials, and a playground.

    lm-trials dashboard
    lm-trials dashboard runs/ --port 7861
    lm-trials dashboard runs/ --export out/dashboard.html
    lm-trials dashboard runs/ --space out/space

It reads the folder's tables, on this machine alone, and loads a model only for the playground. A run that still trains
is followed. `--export` writes one page that opens offline, without the playground; `--space` a folder for a Space of
the Hugging Face Hub. It needs `pip install 'lm_trials[dashboard]'`.
"""

from __future__ import annotations

import errno
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from lm_trials.console import UsageError, script, show_facts
from lm_trials.files import check_writable
from lm_trials.flags import option, parse_arguments

HOST = "127.0.0.1"


@dataclass
class DashboardArguments:
    """What is shown, and where."""

    runs_dir: str = option("runs", filled=True, help="Folder of the runs, or a run; the flag itself may be omitted.")
    results_dir: str = option("results", filled=True, help="Folder of the reports of trials.")
    port: int = option(7860, least=1, most=65535, help="Port on this machine (127.0.0.1).")
    export: str | None = option(None, filled=True, not_with="space", help="Write this HTML file instead of serving.")
    space: str | None = option(None, output=True, help="Write a folder for a Space of the Hub instead of serving.")


@script
def main(argv: list[str] | None = None) -> None:
    """Serve the dashboard until Ctrl-C, or write it."""
    (args,) = parse_arguments(argv, (DashboardArguments,), __doc__ or "", prog="lm-trials dashboard", first="runs_dir")
    if args.export and Path(args.export).suffix != ".html":
        raise UsageError(f"--export {args.export} is not the name of a page; end it with .html")
    if args.export:
        check_writable("--export", Path(args.export).parent)
    from lm_trials.dashboard.tables import RunsFolder

    folder = RunsFolder(args.runs_dir, args.results_dir)
    if missing := [name for name in ("gradio", "plotly") if find_spec(name) is None]:
        raise UsageError(f"lm-trials dashboard needs {' and '.join(missing)}; pip install 'lm_trials[dashboard]'")
    if args.export:
        from lm_trials.dashboard.export import export

        page = export(folder, Path(args.export))
        show_facts("dashboard", {"page": f"{page} ({page.stat().st_size / 1e6:.1f} MB), opens offline"})
    elif args.space:
        from lm_trials.dashboard.space import write_space

        write_space(folder, Path(args.space))
    else:
        _check_port(args.port)
        from lm_trials.dashboard.app import serve

        with suppress(KeyboardInterrupt):  # the way to end it, and no failure
            app = serve(folder, HOST, args.port)
            show_facts("dashboard", {"open": f"{app.local_url} (Ctrl-C ends it)", "runs": str(args.runs_dir)})
            while True:
                time.sleep(3600)


def _check_port(port: int) -> None:
    """Refuse a port in use before Gradio is imported, which takes seconds."""
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that was in use a minute ago is free
        try:
            one.bind((HOST, port))
        except OSError as error:
            reason = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
            raise UsageError(f"--port {port} {reason}; give another one, such as --port 8765") from None


if __name__ == "__main__":
    main()
