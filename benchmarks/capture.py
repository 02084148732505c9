"""Time and memory of capturing activations, compared with plain forward passes and TransformerLens.

    python benchmarks/capture.py
    python benchmarks/capture.py --num_stories 200 --repetitions 3
    python benchmarks/capture.py --dataset_name generated --data_cache_dir data

All ways run the same batches: plain forward passes, with and without logits; capturing all hidden states, and all
sites except attention, without logits; and TransformerLens' `run_with_cache`, without logits where possible.
TransformerLens is used only here and skipped if it is not installed.  To add it without changing the environment:

    pip install --no-deps --target tl_site transformer-lens beartype einops fancy-einsum jaxtyping typeguard
    PYTHONPATH=tl_site python benchmarks/capture.py

Repetitions are interleaved, and ratios are of minima, which other load on the machine affects least.  Compare processor
time with elapsed time to see that load; under much load, set `OMP_NUM_THREADS=1`.  Memory is measured in a separate
process for each way, with the same model, texts and libraries.
"""

from __future__ import annotations

import itertools
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from lm_trials.console import UsageError, note, progress, script, show_facts, show_table
from lm_trials.flags import option, parse_arguments

PLAIN, BARE = "plain forward passes", "forward passes without logits"
GONE, MEMORY, FILES = "hidden states, released", "hidden states, in memory", "hidden states, into files"
EVERYTHING = "all sites, into files"
LENS_KEPT, LENS_GONE = "run_with_cache, hidden states kept", "run_with_cache, hidden states released"
LENS_ALL = "run_with_cache, everything released"
OURS = (GONE, MEMORY, FILES, EVERYTHING)
LENSES = (LENS_KEPT, LENS_GONE, LENS_ALL)
BAR = 1.3


@dataclass
class CaptureBenchmark:
    """The model, the texts and the repetitions."""

    num_stories: int = option(1000, least=1, help="Number of stories.")
    dataset_name: str | None = option(None, help="Prepared corpus or file. Default: generated stories.")
    dataset_split: str | None = option(None, help="Split. Default: validation of a corpus, all of a file.")
    data_cache_dir: str = option("data", help="Folder of prepared corpora.")
    tokenizer_name: str | None = option(None, help="Tokenizer. Default: trained on the stories.")
    config_name: str = option("base8M", help="Preset of the model's shape; weights are random.")
    batch_size: int = option(16, least=1, help="Stories per batch.")
    repetitions: int = option(5, least=1, help="Interleaved repetitions.")
    seed: int = option(0, least=0, help="Seed of stories and weights.")


@dataclass
class Setting:
    """The input of every way: the model, its texts, the batches, and the model in TransformerLens."""

    model: Any
    documents: list[np.ndarray]
    batches: list[tuple[Any, Any]]
    batch_size: int
    bridge: Any = None
    kept: list[Any] = field(default_factory=list)


@script
def main(argv: list[str] | None = None) -> dict[str, float]:
    """Run the benchmark; return the minimal seconds of each way."""
    (args,) = parse_arguments(argv, (CaptureBenchmark,), __doc__ or "")
    names = [PLAIN, BARE, *OURS]
    if find_spec("transformer_lens") is None:
        note("TransformerLens is not installed and skipped; benchmarks/capture.py --help shows how to add it")
    else:
        names += LENSES
    with tempfile.TemporaryDirectory() as folder:
        documents = read_documents(args, Path(folder) / "tokenizer")
        given = args, documents, folder
        seconds, processor, facts = alone(time_all, names, *given)
        memory = {name: alone(memory_of, name, *given) for name in progress(names, "memory", "ways", len(names))}
    show_facts("capture", facts)
    show(seconds, processor, memory)
    return {name: min(times) for name, times in seconds.items()}


def read_documents(args: CaptureBenchmark, tokenizer_folder: Path) -> list[np.ndarray]:
    """Return the ids of each story, truncated to the model's positions, and save the tokenizer; nothing runs torch."""
    from lm_trials.models.presets import PRESETS
    from lm_trials.probing.flags import TextArguments
    from lm_trials.probing.subjects import read_stories
    from lm_trials.stories.generated.generator import generate_stories
    from lm_trials.tokens.stores import opening_of
    from lm_trials.tokens.tokenizers import batch_encoder, load_tokenizer, train_tokenizer

    if args.config_name not in PRESETS:
        raise UsageError(f"--config_name {args.config_name} is no preset; give one of {', '.join(PRESETS)}")
    preset = PRESETS[args.config_name]
    if args.dataset_name is None:
        stories = [row["story"] for row in generate_stories(args.num_stories, args.seed)]
    else:
        texts = TextArguments(
            args.dataset_name, args.dataset_split, args.num_stories, data_cache_dir=args.data_cache_dir
        )
        stories = [record["story"] for record in read_stories(texts)]
    name = args.tokenizer_name
    tokenizer = load_tokenizer(name) if name else train_tokenizer(stories, preset.vocab_size)
    tokenizer.save_pretrained(tokenizer_folder)
    opening = opening_of(tokenizer, "bos")
    return [np.array((opening + ids)[: preset.positions]) for ids in batch_encoder(tokenizer)(stories)]


def alone(function: Callable[..., Any], *given: Any) -> Any:
    """Call a function in a process forked from this one, in which torch has not computed anything yet."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        return pool.submit(function, *given).result()


def prepare(args: CaptureBenchmark, documents: list[np.ndarray], folder: str, lens: bool) -> Setting:
    """Build the model and the batches, and with `lens` a copy of the model in TransformerLens."""
    import copy

    from lm_trials.models.presets import PRESETS
    from lm_trials.models.shapes import build_config, build_model
    from lm_trials.probing.activation_store import padded
    from lm_trials.tokens.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(f"{folder}/tokenizer")
    preset = PRESETS[args.config_name]
    sizes = {"vocab_size": max(preset.vocab_size, len(tokenizer)), "block_size": preset.positions}
    marks = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    model = build_model(build_config(None, args.config_name, None, **sizes, **marks), seed=args.seed).eval()
    by_length = sorted(documents, key=len, reverse=True)  # as `captured` has them
    starts = range(0, len(by_length), args.batch_size)
    batches = [padded(by_length[start : start + args.batch_size]) for start in starts]
    setting = Setting(model, documents, batches, args.batch_size)
    if lens:
        from transformer_lens.model_bridge import TransformerBridge

        how = {"hf_model": copy.deepcopy(model), "tokenizer": tokenizer, "device": "cpu"}
        setting.bridge = TransformerBridge.boot_transformers(args.config_name, **how)
        setting.bridge.eval()
    return setting


def run(name: str, setting: Setting, place: Path) -> None:
    """Run one of the ways over all texts; what it keeps in memory stays there until the next call."""
    import torch

    from lm_trials.probing.activation_store import ActivationStore, captured
    from lm_trials.probing.capture import SITES

    setting.kept.clear()
    sites = [site for site in SITES if site != "attention"] if name == EVERYTHING else ["hidden"]
    how: dict[str, Any] = {"batch_size": setting.batch_size, "description": None}
    if name in (PLAIN, BARE):
        fewer = {"logits_to_keep": 1, "use_cache": False} if name == BARE else {}
        with torch.inference_mode():
            for ids_BT, mask_BT in setting.batches:
                setting.model(input_ids=ids_BT, attention_mask=mask_BT, **fewer)
    elif name == GONE:
        for _ in captured(setting.model, setting.documents, sites, **how):
            pass
    elif name == MEMORY:
        setting.kept.append(ActivationStore.collect(setting.model, setting.documents, sites, in_memory=1 << 60, **how))
    elif name in (FILES, EVERYTHING):
        ActivationStore.collect(setting.model, setting.documents, sites, folder=place / "store", **how)
    else:
        with torch.inference_mode():
            for ids_BT, mask_BT in setting.batches:
                _, cache = run_with_cache(setting, name, ids_BT, mask_BT)
                if name == LENS_KEPT:
                    setting.kept.append(cache)


def run_with_cache(setting: Setting, name: str, ids_BT: Any, mask_BT: Any) -> tuple[Any, dict[str, Any]]:
    """Run TransformerLens on a batch; without logits if only hidden states are asked for."""
    how: dict[str, Any] = {"return_cache_object": False}
    if name != LENS_ALL:
        how |= {"names_filter": residuals(setting), "logits_to_keep": 1}
    return setting.bridge.run_with_cache(ids_BT, attention_mask=mask_BT, **how)


def residuals(setting: Setting) -> list[str]:
    """Return TransformerLens' names of the hidden states, layers 0 to L."""
    depth = len(setting.bridge.blocks)
    return ["blocks.0.hook_resid_pre", *(f"blocks.{block}.hook_resid_post" for block in range(depth))]


def check_same(setting: Setting) -> float:
    """Return the largest difference between both captures of the first batch.

    Raises:
        RuntimeError: for a difference above rounding: then the times would be of different work.
    """
    import torch

    from lm_trials.probing.capture import Capture

    ids_BT, mask_BT = setting.batches[0]
    with torch.inference_mode():
        with Capture(setting.model) as capture:
            logits = setting.model(input_ids=ids_BT, attention_mask=mask_BT).logits
        others, everything = run_with_cache(setting, LENS_ALL, ids_BT, mask_BT)
        _, cache = run_with_cache(setting, LENS_GONE, ids_BT, mask_BT)
    kept_BT = mask_BT.bool()
    apart = [float((logits - others)[kept_BT].abs().max())]
    for layer, name in enumerate(residuals(setting)):
        for found in (everything, cache):
            apart.append(float((found[name][kept_BT] - capture.activations.of("hidden", layer)).abs().max()))
    if not max(apart) < 1e-3:
        raise RuntimeError(
            f"TransformerLens and this project differ by {max(apart):.1e}; their times are not comparable"
        )
    return max(apart)


def time_all(
    names: list[str], args: CaptureBenchmark, documents: list[np.ndarray], folder: str
) -> tuple[dict[str, list[float]], dict[str, list[float]], dict[str, str]]:
    """Return the interleaved seconds of each way, those of the processor, and facts about the measurement."""
    import torch

    setting = prepare(args, documents, folder, lens=LENS_ALL in names)
    lengths = [len(ids_T) for ids_T in documents]
    facts = {
        "model": f"{args.config_name}, {setting.model.num_parameters():,} parameters, random weights, float32",
        "texts": f"{len(documents):,} stories, {sum(lengths):,} tokens, {min(lengths)} to {max(lengths)} each",
        "batches": f"{len(setting.batches)} of {args.batch_size}, {torch.get_num_threads()} threads",
    }
    if setting.bridge is not None:
        facts["agreement"] = f"hidden states and logits of both within {check_same(setting):.0e}"
    seconds: dict[str, list[float]] = {name: [] for name in names}
    processor: dict[str, list[float]] = {name: [] for name in names}
    turns = [name for _ in range(args.repetitions) for name in names]
    few = Setting(setting.model, documents[:32], setting.batches[-1:], args.batch_size, setting.bridge)
    for turn, name in enumerate(itertools.chain(names, progress(turns, "time", "passes", len(turns)))):
        with tempfile.TemporaryDirectory(dir=folder) as place:
            started, busy = time.perf_counter(), time.process_time()
            run(name, few if turn < len(names) else setting, Path(place))  # the first run of each is a warm-up
            if turn >= len(names):
                seconds[name].append(time.perf_counter() - started)
                processor[name].append(time.process_time() - busy)
        setting.kept.clear()
    return seconds, processor, facts


def memory_of(name: str, args: CaptureBenchmark, documents: list[np.ndarray], folder: str) -> tuple[float, float]:
    """Return the peak memory of one way and the part that the pass added, in MB."""
    setting = prepare(args, documents, folder, lens=name in LENSES)
    few = Setting(setting.model, documents[:2], setting.batches[-1:], args.batch_size, setting.bridge)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        run(name, few, Path(place) / "few")
        few.kept.clear()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        run(name, setting, Path(place))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return peak, peak - before


def show(
    seconds: dict[str, list[float]], processor: dict[str, list[float]], memory: dict[str, tuple[float, float]]
) -> None:
    """Print the table, and the ratios with their bars."""
    least = {name: min(times) for name, times in seconds.items()}
    rows = [
        [name, f"{least[name]:.2f}", f"{statistics.median(times):.2f}", f"{least[name] / least[PLAIN]:.2f}",
         f"{min(processor[name]):.2f}", f"{memory[name][0]:,.0f}", f"{memory[name][1]:,.0f}"]
        for name, times in seconds.items()
    ]  # fmt: skip
    columns = ["way", "min\ns", "median\ns", "ratio to\nplain", "processor\ns", "peak\nMB", "pass\nMB"]
    show_table(f"{len(seconds[PLAIN])} interleaved repetitions", columns, rows)
    ratios = {f"{name} / plain": f"{least[name] / least[PLAIN]:.2f} (bar {BAR})" for name in (MEMORY, FILES)}
    pairs = [(MEMORY, LENS_KEPT), (GONE, LENS_GONE), (EVERYTHING, LENS_ALL)]
    for ours, theirs in pairs if LENS_ALL in seconds else []:
        time_ratio, memory_ratio = least[ours] / least[theirs], memory[ours][0] / memory[theirs][0]
        ratios[f"{ours} / {theirs}"] = f"{time_ratio:.2f} of time, {memory_ratio:.2f} of peak memory (bar 1)"
    show_facts("ratios", ratios)


if __name__ == "__main__":
    main()
