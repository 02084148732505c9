"""Trainings in processes of their own, to be killed or to train together; `fork_server` imports this and forks them."""

import importlib
import json
import os
import shutil
import signal
import socket
import sys
import time
from pathlib import Path

from fork_server import fork_server

import align_lora
import sft_lora
import train_gpt2

RESULT = (
    *("loss", "grad_norm", "learning_rate", "eval_loss", "train_loss", "tokens_seen", "share_a", "share_b"),
    *("entropy", "mean_token_accuracy", "num_tokens", "eval_unmasked_loss"),
    *("rewards/margins", "eval_rewards/margins", "reward", "kl", "completions/mean_length", "eval_reward"),
)


def train(argv: list[str]) -> None:
    """Train as the command does."""
    train_gpt2.main(argv)


def call(module: str, function: str, *arguments) -> None:
    """Call a function of another module of the tests."""
    getattr(importlib.import_module(module), function)(*arguments)


def tune(argv: list[str]) -> None:
    """Fine-tune as the command does."""
    sft_lora.main(argv)


def align(argv: list[str]) -> None:
    """Learn from preferences or rewards as the command does."""
    align_lora.main(argv)


def align_and_keep(argv: list[str], kept: str) -> None:
    """Learn as the command does, and keep the ids of the pairs, or of the prompts, batch by batch."""
    from lm_trials.training.alignment_trainer import PreferenceTuner, RewardTuner

    seen, compute, tokenize = [], PreferenceTuner.compute_loss, RewardTuner._tokenize_prompts

    def compute_loss(self, model, inputs, *args, **kwargs):
        rows = zip(inputs["input_ids"].tolist(), inputs["attention_mask"].tolist(), strict=True)
        seen.append([[token for token, seen in zip(*row, strict=True) if seen] for row in rows])
        return compute(self, model, inputs, *args, **kwargs)

    def tokenize_prompts(self, prompts):
        seen.append(tokenize(self, prompts)[0])
        return tokenize(self, prompts)

    PreferenceTuner.compute_loss, RewardTuner._tokenize_prompts = compute_loss, tokenize_prompts
    try:
        align_lora.main(argv)
    finally:
        PreferenceTuner.compute_loss, RewardTuner._tokenize_prompts = compute, tokenize
    Path(f"{kept}-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(seen))


def tune_and_keep(argv: list[str], kept: str) -> None:
    """Fine-tune as the command does, and keep the ids of each batch, padding left out."""
    from lm_trials.training.tuning_trainer import FineTuner

    seen, compute = [], FineTuner.compute_loss

    def compute_loss(self, model, inputs, *args, **kwargs):
        rows = zip(inputs["input_ids"].tolist(), inputs["attention_mask"].tolist(), strict=True)
        seen.append([[token for token, seen in zip(*row, strict=True) if seen] for row in rows])
        return compute(self, model, inputs, *args, **kwargs)

    FineTuner.compute_loss = compute_loss
    sft_lora.main(argv)
    Path(f"{kept}-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(seen))


def train_and_keep(argv: list[str], kept: str) -> None:
    """Train as the command does, and keep the ids of each batch as the model of this process got them."""
    import numpy as np

    from lm_trials.training.trainer import StoryTrainer

    seen, compute = [], StoryTrainer.compute_loss

    def compute_loss(self, model, inputs, *args, **kwargs):
        seen.append(inputs["input_ids"].cpu().numpy().copy())
        return compute(self, model, inputs, *args, **kwargs)

    StoryTrainer.compute_loss = compute_loss
    train_gpt2.main(argv)
    np.save(f"{kept}-{os.environ.get('RANK', '0')}.npy", np.stack(seen))


def break_update(trainer: type, where: str, value: float, update: int, setter=setattr) -> None:
    """Let the loss, a gradient or a weight of one update of a Trainer be `value`."""
    import torch

    def training_step(self, model, *args, step=trainer.training_step, **kwargs):
        loss = step(self, model, *args, **kwargs)
        now = self.state.global_step + 1 == update
        if now and where == "gradient":
            next(weight for weight in model.parameters() if weight.requires_grad).grad.view(-1)[-1] = value
        return torch.full_like(loss, value) if now and where == "loss" else loss

    def zero_grad(self, args, state, control, model=None, **kwargs):
        if state.global_step + 1 == update and where == "weight":
            next(weight for weight in model.parameters() if weight.requires_grad).data.view(-1)[-1] = value

    setter(trainer, "training_step", training_step)
    from lm_trials.training.resumption import Interruption

    setter(Interruption, "on_optimizer_step", zero_grad)  # a callback of every training


def diverge(argv: list[str], rank: int) -> None:
    """Train; the loss of the third update is nan in one process."""
    from lm_trials.training.trainer import StoryTrainer

    if os.environ["RANK"] == str(rank):
        break_update(StoryTrainer, "loss", float("nan"), 3)
    train(argv)


def sharded(command: str, argv: list[str], config: str, kept: str) -> None:
    """Train or tune under DeepSpeed on CPUs, and keep the sizes of the weights at each evaluation: 0 where sharded."""
    os.environ |= {
        "DS_ACCELERATOR": "cpu",
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_CONFIG_FILE": config,
    }
    import deepspeed.comm.torch  # noqa: F401 - the attribute of this name is torch itself

    from lm_trials.training.resumption import ExactResume

    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: (
        None
    )  # C++ for collectives, which takes minutes to compile
    sizes, evaluated = [], ExactResume.evaluated

    def keep(self, metrics):
        sizes.append([weight.numel() for weight in self.model.parameters()])
        return evaluated(self, metrics)

    ExactResume.evaluated = keep
    {"train": train, "tune": tune}[command](argv)
    Path(f"{kept}-{os.environ['RANK']}.json").write_text(json.dumps(sizes))


def world(size: int) -> list[dict[str, str]]:
    """Return the variables that a launcher sets for each process."""
    if size == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(size)}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]


def evaluate_then_train(kind: str, folder: str) -> None:
    """Train four updates after an evaluation, by stock Trainer or by ours, and leave the weights of each process."""
    import torch
    from tiny_models import tiny_model
    from transformers import Trainer

    from lm_trials.tokens.blocks import TrainingBlocks, tiny_store
    from lm_trials.training.run_arguments import RunArguments
    from lm_trials.training.trainer import StoryTrainer

    model = tiny_model("llama", dropout=0.0)
    args = RunArguments(
        output_dir=folder, max_steps=4, per_device_train_batch_size=2, learning_rate=0.1, optim="sgd", use_cpu=True,
        save_strategy="no", report_to="none", disable_tqdm=True,
    )  # fmt: skip
    store = tiny_store([[1, *range(2 + n, 20 + n)] for n in range(40)])
    blocks = TrainingBlocks(store, 16, 16, data_seed=0)
    if kind == "stock":
        trainer = Trainer(model=model, args=args, train_dataset=blocks, eval_dataset=blocks)
    else:
        trainer = StoryTrainer(model=model, args=args, train_dataset=blocks, eval_dataset=store, eval_block_size=32)
    trainer.evaluate()
    trainer.train()
    model = trainer.accelerator.unwrap_model(trainer.model)
    weights = torch.cat([weight.detach().flatten() for weight in model.parameters()])
    torch.save(weights, Path(folder) / f"weights-{kind}-{args.process_index}.pt")


def stopped_after(folder, step):
    """Leave a finished run as it would be, had it been killed after the checkpoint of an update."""
    (folder / "finished.json").unlink()
    for checkpoint in folder.glob("checkpoint-*"):
        if int(checkpoint.name.rpartition("-")[2]) > step:
            shutil.rmtree(checkpoint)


class Processes:
    """A function of this module called in one or several processes, started at once."""

    def __init__(self, function: str, arguments: list, log: Path, world_size: int = 1) -> None:
        server = fork_server()
        self.log = log
        self.started = time.monotonic()
        self.codes: dict[int, int | None] = {
            server.start(function, arguments, log, environment): None for environment in world(world_size)
        }

    def _is_alive(self, number: int) -> bool:
        if self.codes[number] is None:
            self.codes[number] = fork_server().exit_code(number, 0)
        return self.codes[number] is None

    def signal(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to each that still runs."""
        for process in self.codes:
            if self._is_alive(process):
                os.kill(process, number)

    def wait(self, seconds: float = 120) -> list[int]:
        """Return the exit codes; negative for a signal."""
        for process, code in self.codes.items():
            if code is None:
                self.codes[process] = fork_server().exit_code(process, seconds)
            if self.codes[process] is None:
                os.kill(process, signal.SIGKILL)
                raise AssertionError(f"it still runs: {self.log.read_text()[-2000:]}")
        return list(self.codes.values())

    def finish(self) -> float:
        """Wait for the end, which must be a good one; returns the seconds since the start."""
        assert set(self.wait()) == {0}, self.log.read_text()[-3000:]
        return time.monotonic() - self.started

    def wait_for(self, path: Path, seconds: float = 60) -> None:
        """Wait until a file is there."""
        until = time.monotonic() + seconds
        while not path.exists():
            there_is_hope = time.monotonic() < until and any(map(self._is_alive, self.codes))
            assert there_is_hope or path.exists(), self.log.read_text()[-2000:]
            time.sleep(0.002)


class Training(Processes):
    """A training by train_gpt2.py, or by another function of this module that takes its flags."""

    def __init__(self, argv: list[str], folder: Path, world_size: int = 1, function: str = "train") -> None:
        super().__init__(function, [list(map(str, argv))], folder.with_suffix(".log"), world_size)


def outcome(folder: Path) -> tuple[bytes, list[dict]]:
    """Return what must be the same to the bit: the final weights, and every number logged that no clock is in."""
    rows = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    numbers = [{key: row[key] for key in ("step", *RESULT) if key in row} for row in rows]
    (weights,) = folder.glob("*.safetensors")
    return weights.read_bytes(), numbers


def kill_and_go_on(
    argv: list[str],
    folder: Path,
    delay: float,
    world_size: int = 1,
    after: Path | None = None,
    function: str = "train",
) -> bool:
    """Start, kill, and run the same command to its end; says whether the kill came in time.

    The kill comes `delay` seconds after the start, or after the file or folder `after` is there.
    """
    shutil.rmtree(folder, ignore_errors=True)
    first = Training(argv, folder, world_size, function)
    if after:
        first.wait_for(after)
    time.sleep(delay)
    first.signal()
    killed = -signal.SIGKILL in first.wait()
    Training(argv, folder, world_size, function).finish()
    return killed
