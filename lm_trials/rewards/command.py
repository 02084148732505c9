"""Score texts by rewards, beside texts that cheat them and judges that no reward is made of.

    lm-trials rewards --dataset_name tiny-prompt \\
        --reward_funcs words features ends length:120
    lm-trials rewards --dataset_name tiny-prompt \\
        --reward_funcs words mine.py:rhymes --reward_weights 1 0.5 \\
        --base_name_or_path runs/teller --judge_corpus tiny

The texts are the data set's own stories, and for each prompt a text for each way to
cheat.  A reward that a cheat raises above the stories needs another reward beside it,
or a judge that falls.  No model writes here.
"""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

from lm_trials.console import command_line, script, show_facts, show_table
from lm_trials.files import check_writable, write_csv
from lm_trials.flags import parse_arguments
from lm_trials.rewards.flags import RewardArguments

TABLE = "rewards.csv"
TABLES = {"rewards and their sum": ("reward", "sum"), "held-out judges": ("judge",)}
LABELS = {
    "distinct_2": "distinct\npairs",
    "repeated_4grams": "repeated\n4-grams",
    "copied_prompt": "copied",
    "base_loss": "base\nloss",
    "other_judge": "other\njudge",
}


@script
def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Score a data set's own stories and the cheats; returns the rows of the table."""
    (args,) = parse_arguments(argv, (RewardArguments,), __doc__ or "", prog="lm-trials rewards")
    from lm_trials.evaluation.constraint_tasks import split_rows
    from lm_trials.evaluation.held_out import HeldOut, open_bases
    from lm_trials.evaluation.judges import open_judges
    from lm_trials.rewards.cheats import END, cheats, reward_rows
    from lm_trials.rewards.functions import open_rewards

    check_writable("--output_dir", args.output_dir)
    judge, *others = open_judges(args.feature_judge, args.judge_corpus, Path(args.data_cache_dir), args.seed).values()
    rewards = open_rewards(args.reward_funcs, args.reward_weights or None, judge, ends=[END])
    rows = split_rows(args.dataset_name, Path(args.data_cache_dir), args.dataset_split, args.num_prompts)
    (base,) = open_bases(args.base_name_or_path, [""], args.use_cpu)
    always = tuple(name for reward in rewards for name in reward.features)
    held_out = HeldOut(others[0] if others else None, base, always)
    ended = [[[END]]] * len(rows)  # the texts are of no model, and end
    found = [
        {"text": text, **row}
        for text, texts in cheats(rows, args.seed).items()
        for row in reward_rows(rewards, rows, [[each] for each in texts], ended, held_out, args.seed)
    ]
    write_csv(Path(args.output_dir) / TABLE, found)
    for title, roles in TABLES.items():  # one table would be wider than a terminal
        cells: dict[str, dict[tuple[str, str], str]] = {row["text"]: {} for row in found}
        for row in found:
            if row["role"] in roles:
                cells[row["text"]][row["role"], row["metric"]] = f"{row['estimate']:.2f}"
        columns = list(dict.fromkeys(chain.from_iterable(cells.values())))
        labels = ["sum" if role == "sum" else LABELS.get(name, name.replace(":", ":\n")) for role, name in columns]
        show_table(
            f"{len(rows)} prompts of {args.dataset_name}: {title}",
            ["text", *labels],
            [[text, *(of.get(column, "") for column in columns)] for text, of in cells.items()],
            f"means over prompts; intervals are in {TABLE}",
        )
    more = {"reward_funcs": args.reward_funcs, "reward_weights": args.reward_weights}
    more |= {"dataset_name": args.dataset_name, "data_cache_dir": args.data_cache_dir}
    following = command_line("align", method="grpo", model_name_or_path=args.base_name_or_path or "RUN", **more)
    show_facts("results", {"table": str(Path(args.output_dir) / TABLE), "next": following})
    return found


if __name__ == "__main__":
    main()
