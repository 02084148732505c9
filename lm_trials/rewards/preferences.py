"""Preference pairs: of several stories that a run writes for a prompt, the best and the worst by rewards.

A pair depends on the run's weights, the prompt's record, the seed and the flags, not on batches or other prompts.

Shape suffixes: P = prompts, S = stories of a prompt, F = rewards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Features, Value

from lm_trials.console import UsageError, show_facts, show_pairs
from lm_trials.evaluation.constraint_scores import fitting
from lm_trials.evaluation.constraint_tasks import Task, open_asked
from lm_trials.evaluation.judges import open_judges
from lm_trials.evaluation.model_losses import weights_of
from lm_trials.evaluation.sampling import Sampling
from lm_trials.evaluation.storytellers import Storyteller, open_storyteller
from lm_trials.models.reference import resolve_model
from lm_trials.pairs.pairs import SIDES, PairSet, Row, is_blank, write_pairs
from lm_trials.rewards.flags import PreferenceArguments
from lm_trials.rewards.functions import Reward, open_rewards, reward_values, totals
from lm_trials.stories.corpora import check_free
from lm_trials.stories.records import SPLITS, Split

REASONS = {
    "too_long": "prompt too long",
    "in_another_split": "prompt is in another split",
    "blank": "fewer than two stories with a word",
    "below_margin": "difference below the margin",
}
DIGITS = 9  # of a difference, so that 0.7 - 0.6 reaches a margin of 0.1


def make_preferences(args: PreferenceArguments) -> dict[str, Any]:
    """Sample, score and pair; write the data set and return its manifest.

    Raises:
        UsageError: if the data set exists, or no prompt of the train split has a pair.
    """
    check_free(args.folder)
    pairs = open_asked(args.dataset_name, Path(args.data_cache_dir))
    if pairs.kind != "pairs":
        raise UsageError(f"--dataset_name {args.dataset_name} has {pairs.kind}; give prompts and completions")
    judge = next(
        iter(open_judges(args.feature_judge, args.judge_corpus, Path(args.data_cache_dir), args.seed).values())
    )
    open_rewards(args.reward_funcs, args.reward_weights or None, judge)  # before the model is loaded
    teller = open_storyteller(
        args.model_name_or_path,
        args.mode,
        args.tokenizer_name,
        otherwise="instruct",
        load_in_8bit=args.load_in_8bit,
        load_in_4bit=args.load_in_4bit,
        use_cpu=args.use_cpu,
    )
    rewards = open_rewards(args.reward_funcs, args.reward_weights or None, judge, teller.ends)
    counts: dict[Split, Counter[str]] = {split: Counter() for split in SPLITS}
    asked = asked_rows(pairs, args.num_prompts, counts)
    _try(rewards, asked[0][1], teller)
    rows, largest, limit = preferred(teller, asked, rewards, args, counts)
    if not counts["train"]["pairs"]:
        raise UsageError(
            f"--margin {args.margin:g}: no prompt of the train split has two stories whose rewards differ by it; the "
            f"largest difference is {largest:.3g}; give a smaller --margin, more --num_samples or other rewards"
        )
    facts = {
        "source": {"dataset": pairs.described["name"], "content": pairs.described["content"]},
        "model": {"name": teller.name, "weights": weights_of(resolve_model(args.model_name_or_path))},
        "mode": teller.mode,
        "rewards": [{**reward.described, "weight": reward.weight} for reward in rewards],
        "num_samples": args.num_samples,
        "margin": args.margin,
        "sampling": {name: getattr(args, name) for name in ("temperature", "top_k", "top_p", "seed")},
        "max_new_tokens": limit,
        "counts": counts,
    }
    values = {reward.__name__: Value("float64") for reward in rewards}
    more: dict[str, Any] = {f"score_{side}": Value("float64") for side in SIDES}
    more |= {f"rewards_{side}": values for side in SIDES}
    more |= {f"ended_{side}": Value("bool") for side in SIDES}
    return {**write_pairs(rows, args.folder, "preferences", facts, Features(more)), "examples": rows[:2]}


def asked_rows(
    pairs: PairSet, most: int | None, counts: dict[Split, Counter[str]]
) -> list[tuple[Split, dict[str, Any]]]:
    """Return the first rows of each split; a prompt that an earlier split has is left out and counted."""
    found: list[tuple[Split, dict[str, Any]]] = []
    earlier: set[str] = set()
    for split in SPLITS:
        rows = pairs.splits.get(split, [])
        taken = [rows[place] for place in range(min(len(rows), most or len(rows)))]
        kept = [row for row in taken if row["prompt"] not in earlier]
        counts[split].update(prompts=len(taken), in_another_split=len(taken) - len(kept))
        found += [(split, row) for row in kept]
        earlier.update(row["prompt"] for row in kept)
    return found


def _try(rewards: Sequence[Reward], row: dict[str, Any], teller: Storyteller) -> None:
    """Call each reward once, on a record's own story, before stories are sampled for an hour."""
    reward_values(rewards, [row], [row["completion"]], [[teller.ends[0]]])


def preferred(
    teller: Storyteller,
    asked: Sequence[tuple[Split, dict[str, Any]]],
    rewards: Sequence[Reward],
    args: PreferenceArguments,
    counts: dict[Split, Counter[str]],
) -> tuple[list[tuple[Split, Row]], float, int]:
    """Return the pairs with their splits, the largest difference found, and the token limit of the stories."""
    place_of = {row["record_id"]: place for place, (_, row) in enumerate(asked)}
    tasks, prompts, limit = fitting(
        teller, [Task(row["record_id"], row["prompt"]) for _, row in asked], args.max_new_tokens
    )
    fits = [asked[place_of[task.record_id]] for task in tasks]
    for split in SPLITS:
        counts[split]["too_long"] = sum(of == split for of, _ in asked) - sum(of == split for of, _ in fits)
    samples = range(args.num_samples)
    ids_N = teller.write(
        [prompt for prompt in prompts for _ in samples],
        # The draws of a story depend on the seed and this key, so a prompt has the same stories in any data set.
        [f"{task.record_id}:{sample}" for task in tasks for sample in samples],
        limit,
        Sampling(args.temperature, args.top_k, args.top_p, args.seed),
        args.batch_size,
        by_length=True,
        description=f"{Path(teller.name).name} writes",
    )
    texts_N = [str(teller.tokenizer.decode(ids, skip_special_tokens=True)).strip() for ids in ids_N]
    ended_N = [len(ids) < limit for ids in ids_N]
    ids_N = [[*ids, teller.ends[0]] if end else ids for ids, end in zip(ids_N, ended_N, strict=True)]
    values_NF = reward_values(rewards, [row for _, row in fits for _ in samples], texts_N, ids_N)
    scores_N = totals(rewards, values_NF)
    found: list[tuple[Split, Row]] = []
    largest = 0.0
    for number, (split, row) in enumerate(fits):
        places = [place for place in range(number * len(samples), (number + 1) * len(samples))]
        places = [place for place in places if not is_blank(texts_N[place])]
        if len(places) < 2:
            counts[split]["blank"] += 1
            continue
        best, worst = (choose(places, key=lambda place: scores_N[place]) for choose in (max, min))
        difference = round(float(scores_N[best] - scores_N[worst]), DIGITS)
        largest = max(largest, difference)
        if difference < args.margin or texts_N[best] == texts_N[worst]:  # equal but for their ends
            counts[split]["below_margin"] += 1
            continue
        counts[split]["pairs"] += 1
        pair: Row = {"record_id": row["record_id"], "prompt": row["prompt"]}
        for side, place in zip(SIDES, (best, worst), strict=True):
            pair |= {
                side: texts_N[place],
                f"score_{side}": float(scores_N[place]),
                f"rewards_{side}": {
                    reward.__name__: None if np.isnan(value) else float(value)
                    for reward, value in zip(rewards, values_NF[place], strict=True)
                },
                f"ended_{side}": ended_N[place],
            }
        found.append((split, pair))
    return found, largest, limit


def show_preferences(manifest: dict[str, Any], folder: Path) -> None:
    """Print the counts, why prompts have no pair, and two pairs."""
    counts = manifest["counts"]
    total: Counter[str] = sum(counts.values(), Counter())
    without = [f"{total[name]:,} {reason}" for name, reason in REASONS.items() if total[name]]
    facts = {
        "pairs": ", ".join(f"{of['pairs']:,} {split}" for split, of in counts.items()),
        "prompts": ", ".join(f"{of['prompts']:,} {split}" for split, of in counts.items()),
        "without a pair": ", ".join(without) or "none",
        "folder": str(folder),
    }
    show_facts(f"preferences of {manifest['source']['dataset']}", facts)
    show_pairs("two pairs", SIDES, [(row["chosen"], row["rejected"]) for _, row in manifest["examples"]])
