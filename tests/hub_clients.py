"""What clients of `hub_stand_in` do, each in a process of its own that `killed_runs.call` forks."""

import json
import sys
from pathlib import Path


def train(script: str, argv: list[str], environment: dict[str, str | None]) -> None:
    """Call a script as the terminal does, with its words where a program finds them; None takes a variable away."""
    import importlib
    import os

    for name, value in environment.items():
        os.environ.pop(name, None) if value is None else os.environ.update({name: value})
    sys.argv = [f"{script}.py", *argv]
    importlib.import_module(script).main(argv)


def train_with_another_hub(argv: list[str], endpoint: str, timeout: float) -> None:
    """Train where the Hub is another than this process was imported for."""
    from huggingface_hub import constants

    from lm_trials.training import hub

    constants.ENDPOINT, hub.TIMEOUT = endpoint, timeout
    train("train_gpt2", argv, {})


def read_model(repository: str, revisions: list[str], kept: str, data: str) -> None:
    """Load each revision with nothing of ours, keep it as `kept/<revision>`; evaluate and write with our commands."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import eval_checkpoint
    from lm_trials.evaluation import generate

    for revision in revisions:
        folder = Path(kept) / revision
        AutoModelForCausalLM.from_pretrained(repository, revision=revision).save_pretrained(folder)
        AutoTokenizer.from_pretrained(repository, revision=revision).save_pretrained(folder)
    argv = f"--model_dir {repository} --dataset_name tiny --data_cache_dir {data} --output_dir {kept}/eval"
    eval_checkpoint.main([*argv.split(), "--block_size", "32"])  # the training's window
    generate.main(
        ["--model_name_or_path", f"{repository}@{revisions[-1]}", "--prompt", "One day", "--max_new_tokens", "5"]
    )


def download(repository: str, folder: str) -> None:
    """Fetch all of a repository, as `hf download` does."""
    from huggingface_hub import snapshot_download

    snapshot_download(repository, local_dir=folder)


def read_adapter(base: str, repository: str, kept: str) -> None:
    """Load an adapter onto its base with PEFT alone, and keep its weights and what it answers."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), repository)
    model.save_pretrained(kept)
    AutoTokenizer.from_pretrained(repository)
    with torch.no_grad():
        logits = model(torch.arange(3, 11)[None]).logits
    (Path(kept) / "logits.json").write_text(json.dumps(logits.flatten().tolist()))
