"""Score whether stories have the words and features that their prompts ask for.

    lm-trials constraints --model runs/teller --dataset_name tiny-prompt
    lm-trials constraints --model runs/teller-s0 runs/teller-s1 \\
        --dataset_name tiny-prompt --coverage tiny \\
        --feature_judge classifier --judge_corpus tiny
    lm-trials constraints --model runs/demo --prompts prompts.yaml

Each score has two controls: the data set's own stories, judged alike, and the
model's stories judged against the constraints of other prompts, which is the
score of a model that ignores its prompt.  Beside the scores are judges that no
score is made of: distinct word pairs, repeated and copied sequences, with
--judge_corpus a second judge of features, with --base_name_or_path the loss:

    lm-trials constraints --model runs/aligned --dataset_name tiny-prompt \\
        --judge_corpus tiny --base_name_or_path start
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_trials.console import note, script
from lm_trials.evaluation.constraint_flags import ConstraintArguments, sampling_of
from lm_trials.flags import parse_arguments

if TYPE_CHECKING:  # torch takes seconds to import
    from lm_trials.evaluation.constraint_tasks import Task


@script
def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Generate stories for prompts and score them; returns the rows of the table."""
    (args,) = parse_arguments(argv, (ConstraintArguments,), __doc__ or "", prog="lm-trials constraints")
    sampling, seeds = sampling_of(args)
    from lm_trials.evaluation.constraint_scores import score, write_for
    from lm_trials.evaluation.constraint_tables import ConstraintResult, show_result, write_result
    from lm_trials.evaluation.constraint_tasks import coverage_of, training_words
    from lm_trials.evaluation.held_out import HeldOut, open_bases
    from lm_trials.evaluation.judges import judge_quality, open_judges
    from lm_trials.evaluation.storytellers import open_storyteller
    from lm_trials.files import check_writable

    check_writable("--output_dir", results_home(args))
    tasks = _tasks(args)
    judges = open_judges(args.feature_judge, args.judge_corpus, Path(args.data_cache_dir), args.seed)
    judge, *others = judges.values()
    quality = [
        {"judge": name, **row}
        for name, each in judges.items()
        for row in (judge_quality(each, args.judge_corpus, Path(args.data_cache_dir)) if args.judge_corpus else ())
    ]
    coverage = coverage_of(tasks, training_words(args.coverage, Path(args.data_cache_dir))) if args.coverage else None
    bases = open_bases(args.base_name_or_path, args.model_name_or_path, args.use_cpu, args.batch_size)
    written = []
    for name in args.model_name_or_path:
        teller = open_storyteller(
            name,
            args.mode,
            args.tokenizer_name,
            otherwise="completion" if args.prompts else "instruct",
            load_in_8bit=args.load_in_8bit,
            load_in_4bit=args.load_in_4bit,
            use_cpu=args.use_cpu,
        )
        written.append(write_for(teller, tasks, judge, sampling, seeds, args.max_new_tokens, args.batch_size))
    held_out = [HeldOut(others[0] if others else None, base) for base in bases]
    rows = score(written, judge, coverage, args.seed, held_out)
    result = ConstraintResult(written, rows, quality, coverage, seeds)
    about = Path(args.prompts).stem.replace(" ", "_") if args.prompts else f"{args.dataset_name}-{args.dataset_split}"
    folder = results_home(args)
    if not args.output_dir:
        folder /= f"constraints-{Path(about).name}-{written[0].mode}"
    write_result(result, folder, dataclasses.asdict(args))
    show_result(result, folder, args)
    return result.rows


def _tasks(args: ConstraintArguments) -> list[Task]:
    from lm_trials.evaluation.constraint_tasks import file_tasks, pair_tasks

    if args.prompts:
        return file_tasks(Path(args.prompts))[: args.num_prompts]
    tasks = pair_tasks(args.dataset_name or "", Path(args.data_cache_dir), args.dataset_split, args.num_prompts)
    if len(tasks) < args.num_prompts:
        note(f"note: {args.dataset_name} has {len(tasks)} {args.dataset_split} prompts, fewer than {args.num_prompts}")
    return tasks


def results_home(args: ConstraintArguments) -> Path:
    """Return the folder of the results, or of their folder: under the model's if it is one local folder, else `out`."""
    if args.output_dir:
        return Path(args.output_dir)
    model = Path(args.model_name_or_path[0])
    return model / "eval" if len(args.model_name_or_path) == 1 and model.is_dir() else Path("out")


if __name__ == "__main__":
    main()
