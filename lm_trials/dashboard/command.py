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

import time
from dataclasses import dataclass
from pathlib import Path

from lm_trials.console import UsageError, script, show_facts
from lm_trials.files import check_writable
from lm_trials.flags import option, parse_arguments


@dataclass
class DashboardArguments:
    """What is shown, and where."""

    runs_dir: str = option("runs", filled=True, help="Folder of the runs, or a run; the flag itself may be omitted.")
    results_dir: str = option("results", filled=True, help="Folder of the reports of trials.")
    port: int = option(7860, least=1, most=65535, help="Port on 127.0.0.1.")
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
    try:
        import gradio  # noqa: F401
        import plotly  # noqa: F401
    except ImportError as error:
        raise UsageError(f"lm-trials dashboard needs {error.name}; pip install 'lm_trials[dashboard]'") from None
    if args.export:
        from lm_trials.dashboard.export import export

        page = export(folder, Path(args.export))
        show_facts("dashboard", {"page": f"{page} ({page.stat().st_size / 1e6:.1f} MB), opens offline"})
    elif args.space:
        from lm_trials.dashboard.space import write_space

        write_space(folder, Path(args.space))
    else:
        from lm_trials.dashboard.app import serve

        app = serve(folder, args.port)
        show_facts("dashboard", {"open": f"{app.local_url} (Ctrl-C ends it)", "runs": str(args.runs_dir)})
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            app.close()


if __name__ == "__main__":
    main()
