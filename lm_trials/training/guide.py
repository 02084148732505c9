"""Warnings about settings far from the usual ones for a model's size, in training from scratch.

The usual values are published conventions (docs/choosing_sizes.md), so these are warnings and not errors, with limits
wide enough that a warning means a likely mistake.
"""

from __future__ import annotations

GUIDE = "docs/choosing_sizes.md"

# (upper limit of parameters, lowest and highest usual peak learning rate for AdamW).
LEARNING_RATES = (
    *((3e6, 5e-4, 3e-3), (30e6, 3e-4, 2e-3), (150e6, 2e-4, 1e-3), (500e6, 1e-4, 6e-4)),
    (float("inf"), 5e-5, 3e-4),
)
# A warning only beyond 4 times the usual band: the demo's 4e-3 for 0.9M parameters, above the band, reaches 0.76
# nats. The factor itself is a convention and was not measured.
LEARNING_RATE_SLACK = 4

# Published models of 260K to 110M parameters use 65,536 and 131,072 tokens per update (llama2.c); the factor of 10 on
# both sides is a convention. In the demo's shape 4,096 tokens per update instead of 2,048 gave 4.63 nats after 60
# updates: too few updates.
TOKENS_PER_UPDATE = 100_000
TOKENS_PER_UPDATE_SLACK = 10
# Smaller models are meant to train on a CPU in minutes, where many small updates learn more than a dozen large ones.
SMALL_PARAMETERS = 3_000_000

MIN_TOKENS_PER_PARAMETER = 1  # usual: 20 (Chinchilla, fitted on far larger models)
MAX_EPOCHS = 16  # beyond, repeats gain little (Muennighoff et al. 2023)
# Usual warm-up is 1 to 5 % of the updates; above half, the schedule is likely a mistake. Not measured.
MAX_WARMUP_SHARE = 0.5


def learning_rate_band(num_parameters: int) -> tuple[float, float]:
    """Return the lowest and highest usual peak learning rate for a model of this size.

    >>> learning_rate_band(8_335_008), learning_rate_band(210_797_568)
    ((0.0003, 0.002), (0.0001, 0.0006))
    """
    return next((low, high) for below, low, high in LEARNING_RATES if num_parameters < below)


def warnings_for_run(
    *,
    num_parameters: int,
    tokens_per_update: int,
    learning_rate: float,
    total_tokens: int,
    dataset_tokens: int | None = None,
    warmup_updates: int = 0,
    device_type: str = "cuda",
    mixed_precision: str = "no",
) -> list[str]:
    """Return one line for each setting that is far from the usual ones.

    Args:
        num_parameters: with embeddings, tied ones once.
        tokens_per_update: block size x batch x accumulation x processes.
        learning_rate: the peak.
        total_tokens: of the whole run, repeats included.
        dataset_tokens: in one pass over the training set; None for a stream.
        mixed_precision: accelerate's `"no"`, `"bf16"` or `"fp16"`.

    >>> usual = dict(num_parameters=8_335_008, tokens_per_update=131_072, total_tokens=10**9)
    >>> for line in warnings_for_run(learning_rate=5e-5, **usual):
    ...     print(line)
    --learning_rate 5e-05 is low for 8,335,008 parameters (usual: 0.0003 to 0.002; docs/choosing_sizes.md); raise it
    """
    low, high = learning_rate_band(num_parameters)
    few, many = TOKENS_PER_UPDATE / TOKENS_PER_UPDATE_SLACK, TOKENS_PER_UPDATE * TOKENS_PER_UPDATE_SLACK
    updates, passes = total_tokens / tokens_per_update, total_tokens / (dataset_tokens or total_tokens)
    lines: list[str] = []

    def add(setting: str, usual: str, remedy: str) -> None:
        lines.append(f"{setting} (usual: {usual}; {GUIDE}); {remedy}")

    if not low / LEARNING_RATE_SLACK <= learning_rate <= high * LEARNING_RATE_SLACK:
        word, remedy = ("low", "raise it") if learning_rate < low else ("high", "lower it")
        setting = f"--learning_rate {learning_rate:g} is {word} for {num_parameters:,} parameters"
        add(setting, f"{low:g} to {high:g}", remedy)
    if num_parameters >= SMALL_PARAMETERS and not few <= tokens_per_update <= many:
        remedy = f"{'raise' if tokens_per_update < few else 'lower'} --gradient_accumulation_steps or the batch"
        add(f"{tokens_per_update:,} tokens per update", f"{TOKENS_PER_UPDATE:,}", remedy)
    if total_tokens < MIN_TOKENS_PER_PARAMETER * num_parameters:
        setting = f"{total_tokens:,} tokens for {num_parameters:,} parameters"
        add(setting, "20 for each parameter", "train longer or use a smaller model")
    if passes > MAX_EPOCHS:
        setting = f"{passes:.0f} passes over {dataset_tokens or 0:,} training tokens"
        add(setting, "at most 4 to 16", "watch the validation loss")
    if warmup_updates > MAX_WARMUP_SHARE * updates:
        add(f"{warmup_updates:,} of {updates:,.0f} updates are warm-up", "1 to 5 %", "lower --warmup_steps")
    if device_type == "cpu" and mixed_precision != "no":
        setting = f"{mixed_precision} on a CPU without bf16 units is about ten times slower"
        add(setting, "float32", f"remove --{mixed_precision}")
    return lines
