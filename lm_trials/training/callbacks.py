"""Dense evaluations and checkpoints at the start of a run, and tables of generated stories."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from transformers import TrainerCallback, TrainerControl

from lm_trials.data.datasets import open_dataset
from lm_trials.evaluation.feature_scores import Generation, score_features, write_generations
from lm_trials.files import write_file

COLUMNS = ("prefix", "clean_prefix", "generation", "target", "step")
GENERATIONS = "generations"
Spacing = Literal["linear", "geometric"]


def dense_steps(num_steps: int, eval_steps: int, spacing: Spacing = "linear") -> list[int]:
    """Return the updates up to `num_steps` with a dense evaluation.

    Linear: every `eval_steps` / 10.  Geometric: as many evaluations, with distances growing by a constant factor.

    >>> dense_steps(40, 100)
    [10, 20, 30, 40]
    >>> dense_steps(40, 100, "geometric")
    [1, 3, 12, 40]
    """
    every = max(eval_steps // 10, 1)
    if spacing == "linear":
        return list(range(every, num_steps + 1, every))
    count = max(num_steps // every, 1)
    steps = np.geomspace(1, num_steps, count).round().astype(int) if count > 1 else np.array([num_steps])
    return sorted(set(steps.tolist()))


class DenseEvaluation(TrainerCallback):
    """Evaluates ten times as often as `--eval_steps` (below 1: a share of all updates) in the first updates."""

    def __init__(self, num_dense: int, spacing: Spacing, eval_steps: float | None, num_steps: int) -> None:
        every = eval_steps or num_steps
        every = math.ceil(every * num_steps) if every < 1 else int(every)
        self.steps = frozenset(dense_steps(num_dense, every, spacing) if num_dense else [])

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> TrainerControl:
        """Request an evaluation after these updates."""
        control.should_evaluate = control.should_evaluate or state.global_step in self.steps
        return control


class CheckpointLadder(TrainerCallback):
    """Saves update 0 and the updates that are powers of two, besides those of `--save_steps`.

    Add it before `Interruption`.  `--load_best_model_at_end` never takes these checkpoints: a ladder changes no result.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        """Save update 0; not again when a run resumes from it, whose random state is that of another start."""
        if state.global_step == 0 and not (Path(args.output_dir) / "checkpoint-0").is_dir():
            self.trainer.scheduled = False
            self.trainer._save_checkpoint(self.trainer.model, None)
            self.trainer.clock.restart()

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> TrainerControl:
        """Request a checkpoint after powers of two."""
        self.trainer.scheduled = control.should_save
        control.should_save = control.should_save or state.global_step.bit_count() == 1
        return control


@dataclass(frozen=True)
class GenerationPlan:
    """Settings of the stories generated at evaluations.

    Attributes:
        sets: names of prepared data sets, whose validation records have the prompts.
        every: generate at each `every`-th evaluation.
        count: stories for each set.
        max_new_tokens: maximum tokens of a story.
    """

    sets: tuple[str, ...]
    data_cache_dir: Path
    every: int = 5
    count: int = 16
    max_new_tokens: int = 200
    temperature: float = 1.0
    seed: int = 0


def write_tables(
    model: Any, tokenizer: Any, plan: GenerationPlan, folder: Path | None, step: int
) -> dict[str, list[Generation]]:
    """Generate for the prompts of each set, and write `<folder>/<set>/step-<n>.parquet`; nothing without a folder.

    `pandas.read_parquet(folder / set)` reads the tables of all steps.
    """
    written = {}
    for name in plan.sets:
        texts = open_dataset(name, plan.data_cache_dir).select("validation").prompts(plan.count)
        generations = write_generations(model, tokenizer, texts, plan.max_new_tokens, plan.temperature, plan.seed)
        written[name] = generations
        if folder is not None:
            rows = [asdict(generation) | {"step": step} for generation in generations]
            columns = (*COLUMNS, "record_id", "features", "words")
            table = pa.Table.from_pylist([{column: row[column] for column in columns} for row in rows])
            write_file(folder / name / f"step-{step:06d}.parquet", partial(pq.write_table, table))
    return written


def feature_metrics(written: dict[str, list[Generation]], prefix: str = "eval") -> dict[str, float]:
    """Return the shares of stories with the requested features, and with others, as metrics to log."""
    metrics = {}
    for name, generations in written.items():
        for row in score_features(generations):
            part = row["slice"].replace("asked!=", "unasked_").replace("asked=", "asked_").replace("all", "words_used")
            metrics[f"{prefix}_{name}_{part}"] = row["estimate"]
    return metrics


def as_markdown(generations: list[Generation]) -> str:
    """Return a Markdown table for TensorBoard."""
    cells = [(g.clean_prefix, g.generation, g.target) for g in generations]
    rows = [" | ".join(cell.replace("|", "/").replace("\n", "<br>") for cell in row) for row in cells]
    return "\n".join(["| prefix | generation | target |", "| --- | --- | --- |", *(f"| {row} |" for row in rows)])


def report_to_wandb(written: dict[str, list[Generation]], step: int) -> None:
    """Log the tables to Trainer's W&B run."""
    import wandb

    for name, generations in written.items():
        rows = [[*(getattr(generation, column) for column in COLUMNS[:-1]), step] for generation in generations]
        wandb.log({f"{GENERATIONS}/{name}": wandb.Table(columns=list(COLUMNS), data=rows)}, commit=False)
