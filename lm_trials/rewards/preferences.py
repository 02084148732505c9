"""Preference pairs: of several stories for a prompt, the best and the worst by rewards.

The stories are a run's, or without one the data set's own.  A run's depend on its weights, the prompt's record, the
seed and the flags, not on batches or other prompts.

Shape suffixes: P = prompts, S = stories of a prompt, N = P x S, F = rewards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Features, Value

from lm_trials.console import UsageError, command_line, show_facts, show_pairs
from lm_trials.evaluation.constraint_scores import fitting
from lm_trials.evaluation.constraint_tasks import Task, open_asked
from lm_trials.evaluation.judges import open_judges
from lm_trials.evaluation.model_losses import weights_of
from lm_trials.evaluation.sampling import Sampling
from lm_trials.evaluation.storytellers import Storyteller, open_storyteller
from lm_trials.models.reference import resolve_model
from lm_trials.pairs.pairs import SIDES, PairSet, Row, is_blank, write_pairs
from lm_trials.rewards.cheats import END
from lm_trials.rewards.flags import PreferenceArguments
from lm_trials.rewards.functions import Reward, open_rewards, reward_values, totals
from lm_trials.stories.corpora import check_free
from lm_trials.stories.draws import draw_integers, record_keys
from lm_trials.stories.records import SPLITS, Split

Asked = tuple[Split, Row]
REASONS = {
    "too_long": "prompt too long",
    "in_another_split": "prompt is in another split",
    "blank": "fewer than two stories with a word and a reward",
    "below_margin": "difference below the margin",
}
DIGITS = 9  # of a difference, so that 0.7 - 0.6 reaches a margin of 0.1


@dataclass(frozen=True)
class Candidates:
    """The stories to choose from.

    Attributes:
        asked: the row of each of P prompts, with its split.
        texts_PS, ids_PS: S stories of each prompt, and their token ids with the one that ended them.
        ended_PS: whether the story ends, or was cut.
        described: where they are from, for the manifest.
    """

    asked: list[Asked]
    texts_PS: list[list[str]]
    ids_PS: list[list[list[int]]]
    ended_PS: list[list[bool]]
    described: dict[str, Any]


def make_preferences(args: PreferenceArguments) -> dict[str, Any]:
    """Sample, score and pair; write the data set and return its manifest, and two rows as `examples`.

    Raises:
        UsageError: if the data set exists, or no prompt of the train split has a pair.
    """
    check_free(args.folder)
    place = Path(args.data_cache_dir)
    pairs = open_asked(args.dataset_name, place)
    if pairs.kind != "pairs":
        raise UsageError(f"--dataset_name {args.dataset_name} has {pairs.kind}; give prompts and completions")
    corpus = args.judge_corpus if args.feature_judge == "classifier" else None  # no held-out judge is needed
    judge = open_judges(args.feature_judge, corpus, place, args.seed)[args.feature_judge]
    open_rewards(args.reward_funcs, args.reward_weights or None, judge)  # before a model is loaded
    teller = None
    if args.model_name_or_path is not None:
        teller = open_storyteller(
            args.model_name_or_path,
            args.mode,
            args.tokenizer_name,
            otherwise="instruct",
            load_in_8bit=args.load_in_8bit,
            load_in_4bit=args.load_in_4bit,
            use_cpu=args.use_cpu,
        )
    ends = teller.ends if teller else [END]
    rewards = open_rewards(args.reward_funcs, args.reward_weights or None, judge, ends)
    counts: dict[Split, Counter[str]] = {split: Counter() for split in SPLITS}
    asked = asked_rows(pairs, args.num_prompts, counts)
    _, first = asked[0]
    reward_values(rewards, [first], [first["completion"]], [ends[:1]])  # before stories are sampled for an hour
    candidates = sampled(teller, asked, args) if teller else stories_of_others(asked, args)
    kept = Counter(split for split, _ in candidates.asked)
    for split in SPLITS:
        counts[split]["too_long"] = sum(of == split for of, _ in asked) - kept[split]
    rows, largest = preferred(candidates, rewards, args.margin, counts)
    if not counts["train"]["pairs"]:
        raise UsageError(
            f"--margin {args.margin:g}: no prompt of the train split has two stories whose rewards differ by it; the "
            f"largest difference is {largest:.3g}; give a smaller --margin, more --num_samples or other rewards"
        )
    facts = {
        "source": {"dataset": pairs.described["name"], "content": pairs.described["content"]},
        **candidates.described,
        "rewards": [{**reward.described, "weight": reward.weight} for reward in rewards],
        "num_samples": args.num_samples,
        "margin": args.margin,
        "seed": args.seed,
        "counts": counts,
    }
    values = {reward.__name__: Value("float64") for reward in rewards}
    more: dict[str, Any] = {f"score_{side}": Value("float64") for side in SIDES}
    more |= {f"rewards_{side}": values for side in SIDES}
    more |= {f"ended_{side}": Value("bool") for side in SIDES}
    return {**write_pairs(rows, args.folder, "preferences", facts, Features(more)), "examples": rows[:2]}


def asked_rows(pairs: PairSet, most: int | None, counts: dict[Split, Counter[str]]) -> list[Asked]:
    """Return the first rows of each split; a prompt that an earlier split has is left out and counted."""
    found: list[Asked] = []
    earlier: set[str] = set()
    for split in SPLITS:
        rows = pairs.splits.get(split, [])
        taken = [rows[place] for place in range(min(len(rows), most or len(rows)))]
        kept = [row for row in taken if row["prompt"] not in earlier]
        counts[split].update(prompts=len(taken), in_another_split=len(taken) - len(kept))
        found += [(split, row) for row in kept]
        earlier.update(row["prompt"] for row in kept)
    return found


def sampled(teller: Storyteller, asked: Sequence[Asked], args: PreferenceArguments) -> Candidates:
    """Return stories that a model writes for the prompts that leave room for one."""
    of_record = {row["record_id"]: (split, row) for split, row in asked}
    tasks = [Task(row["record_id"], row["prompt"]) for _, row in asked]
    tasks, prompts, limit = fitting(teller, tasks, args.max_new_tokens)
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
    ids_PS = [ids_N[start : start + len(samples)] for start in range(0, len(ids_N), len(samples))]
    ended_PS = [[len(ids) < limit for ids in of] for of in ids_PS]
    return Candidates(
        [of_record[task.record_id] for task in tasks],
        [[str(teller.tokenizer.decode(ids, skip_special_tokens=True)).strip() for ids in of] for of in ids_PS],
        [
            [ids + teller.ends[:1] * end for ids, end in zip(of, ended, strict=True)]
            for of, ended in zip(ids_PS, ended_PS, strict=True)
        ],
        ended_PS,
        {
            "model": {"name": teller.name, "weights": weights_of(resolve_model(teller.name))},
            "mode": teller.mode,
            "sampling": {name: getattr(args, name) for name in ("temperature", "top_k", "top_p")},
            "max_new_tokens": limit,
        },
    )


def stories_of_others(asked: Sequence[Asked], args: PreferenceArguments) -> Candidates:
    """Return for each prompt the record's own story, and stories of other records of its split."""
    stories: dict[Split, list[str]] = {}
    for split, row in asked:
        stories.setdefault(split, []).append(row["completion"])
    keys = record_keys(row["record_id"] for _, row in asked)
    drawn = [draw_integers(keys, args.seed, f"preferences: story {sample}") for sample in range(1, args.num_samples)]
    texts_PS = [
        [row["completion"], *(stories[split][int(draws[place]) % len(stories[split])] for draws in drawn)]
        for place, (split, row) in enumerate(asked)
    ]
    ended_PS = [[True] * args.num_samples] * len(asked)
    return Candidates(list(asked), texts_PS, [[[END]] * args.num_samples] * len(asked), ended_PS, {"model": None})


def preferred(
    candidates: Candidates, rewards: Sequence[Reward], margin: float, counts: dict[Split, Counter[str]]
) -> tuple[list[Asked], float]:
    """Return the pairs with their splits, and the largest difference found; complete `counts`."""
    texts_PS = candidates.texts_PS
    rows = [row for (_, row), of in zip(candidates.asked, texts_PS, strict=True) for _ in of]
    values_NF = reward_values(rewards, rows, list(chain(*texts_PS)), list(chain(*candidates.ids_PS)))
    values_PSF = values_NF.reshape(len(texts_PS), -1, len(rewards))
    scores_PS = totals(rewards, values_NF).reshape(len(texts_PS), -1)
    found: list[Asked] = []
    largest = 0.0
    for place, (split, row) in enumerate(candidates.asked):
        texts, scores = texts_PS[place], scores_PS[place]
        choices = [sample for sample, text in enumerate(texts) if not (is_blank(text) or np.isnan(scores[sample]))]
        if len(choices) < 2:
            counts[split]["blank"] += 1
            continue
        best, worst = (choose(choices, key=lambda sample: scores[sample]) for choose in (max, min))
        difference = round(float(scores[best] - scores[worst]), DIGITS)
        largest = max(largest, difference)
        if difference < margin or texts[best] == texts[worst]:  # equal but for their ends
            counts[split]["below_margin"] += 1
            continue
        counts[split]["pairs"] += 1
        pair: Row = {"record_id": row["record_id"], "prompt": row["prompt"]}
        for side, sample in zip(SIDES, (best, worst), strict=True):
            values = {
                reward.__name__: None if np.isnan(value) else float(value)
                for reward, value in zip(rewards, values_PSF[place, sample], strict=True)
            }
            pair |= {side: texts[sample], f"score_{side}": float(scores[sample]), f"rewards_{side}": values}
            pair[f"ended_{side}"] = candidates.ended_PS[place][sample]
        found.append((split, pair))
    return found, largest


def show_preferences(manifest: dict[str, Any], args: PreferenceArguments) -> None:
    """Print the counts, why prompts have no pair, the next command, and two pairs."""
    counts = manifest["counts"]
    total: Counter[str] = sum(counts.values(), Counter())
    without = [f"{total[name]:,} {reason}" for name, reason in REASONS.items() if total[name]]
    facts = {
        "pairs": ", ".join(f"{of['pairs']:,} {split}" for split, of in counts.items()),
        "prompts": ", ".join(f"{of['prompts']:,} {split}" for split, of in counts.items()),
        "without a pair": ", ".join(without) or "none",
        "folder": str(args.folder),
        "next": command_line(
            "align",
            method="dpo",
            model_name_or_path=args.model_name_or_path or "RUN",
            dataset_name=args.folder.name,
            data_cache_dir=args.data_cache_dir,
        ),
    }
    show_facts(f"preferences of {manifest['source']['dataset']}", facts)
    show_pairs("two pairs", SIDES, [(row["chosen"], row["rejected"]) for _, row in manifest["examples"]])
