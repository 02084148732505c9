"""Constraint scores: does a model write the words and features that it is asked for?

python -m lm_trials.evaluation.constraints --model runs/teller --dataset_name tiny-prompt --seeds 0,1,2
python -m lm_trials.evaluation.constraints --model runs/teller-s0 runs/teller-s1 --dataset_name tiny-prompt \\
    --coverage tiny --feature_judge classifier --judge_corpus tiny
python -m lm_trials.evaluation.constraints --model runs/demo --prompts prompts.yaml

Beside each score stand the records' own stories, judged in the same way, and the model's stories judged against other
prompts' constraints: what one gets without listening.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_trials.console import UsageError, note, progress, script
from lm_trials.evaluation.constraint_flags import ConstraintArguments, sampling_of
from lm_trials.evaluation.sampling import Sampling
from lm_trials.flags import parse_arguments

if TYPE_CHECKING:  # torch takes seconds to import
    from lm_trials.evaluation.constraint_scores import Written
    from lm_trials.evaluation.constraint_tasks import Task
    from lm_trials.evaluation.coverage import Coverage
    from lm_trials.evaluation.judges import Judge
    from lm_trials.evaluation.storytellers import Storyteller

LONGEST_STORY = 400


@script
def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Let models write for prompts and score the stories; returns the rows of the table."""
    (args,) = parse_arguments(
        argv, (ConstraintArguments,), __doc__ or "", prog="python -m lm_trials.evaluation.constraints"
    )
    sampling, seeds = sampling_of(args)
    from lm_trials.evaluation.constraint_tables import ConstraintResult, show_result, write_result
    from lm_trials.evaluation.storytellers import open_storyteller

    tasks = _tasks(args)
    judge, quality = _judge(args)
    coverage = _coverage(args, tasks)
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
    result = ConstraintResult(written, score(written, judge, coverage, args.seed), quality, coverage, seeds)
    folder = results_folder(args, written)
    write_result(result, folder, dataclasses.asdict(args))
    show_result(result, folder, args)
    return result.rows


def _tasks(args: ConstraintArguments) -> list[Task]:
    from lm_trials.evaluation.constraint_tasks import file_tasks, pair_tasks

    if args.prompts:
        return file_tasks(Path(args.prompts))[: args.num_prompts]
    tasks = pair_tasks(args.dataset_name, Path(args.data_cache_dir), args.dataset_split, args.num_prompts)
    if len(tasks) < args.num_prompts:
        note(f"note: {args.dataset_name} has {len(tasks)} {args.dataset_split} prompts, fewer than {args.num_prompts}")
    return tasks


def _judge(args: ConstraintArguments) -> tuple[Judge, list[dict[str, Any]]]:
    """Return who judges, and how well where there are labelled records to tell."""
    from lm_trials.evaluation.judges import DetectorJudge, corpus_judge, judge_quality

    place = Path(args.data_cache_dir)
    judge: Judge = DetectorJudge()
    if args.feature_judge == "classifier":
        judge = corpus_judge(args.judge_corpus or "", place, args.seed)
    return judge, judge_quality(judge, args.judge_corpus, place) if args.judge_corpus else []


def _coverage(args: ConstraintArguments, tasks: list[Task]) -> Coverage | None:
    if not args.coverage:
        return None
    from lm_trials.evaluation.coverage import coverage_of, training_words

    return coverage_of(tasks, training_words(args.coverage, Path(args.data_cache_dir)))


def write_for(
    teller: Storyteller,
    tasks: list[Task],
    judge: Judge,
    sampling: Sampling,
    seeds: list[int],
    max_new_tokens: int | None = None,
    batch_size: int = 16,
) -> Written:
    """Let a model write a story for each task and each seed.

    All stories have the same limit of tokens.  Prompts that leave no room for it, or where none is given take more
    than half of the positions, are left out, and how many is said.

    Raises:
        UsageError: where no prompt is left.
    """
    from lm_trials.evaluation.constraint_scores import Written, judged
    from lm_trials.evaluation.constraint_tasks import task_prompts

    prompts = task_prompts(teller, tasks)
    longest = teller.positions - max_new_tokens if max_new_tokens else teller.positions // 2
    fits = [place for place, prompt in enumerate(prompts) if len(prompt) <= longest]
    if not fits:
        shortest = min(map(len, prompts))
        raise UsageError(
            f"the shortest of {len(prompts)} prompts has {shortest:,} tokens, and the {teller.positions:,} positions "
            f"of {teller.name} have room for {max(longest, 0):,}; give a smaller --max_new_tokens or shorter prompts"
        )
    if len(fits) < len(tasks):
        note(
            f"note: {len(tasks) - len(fits)} of {len(tasks)} prompts have more than {longest:,} tokens and are left out"
        )
    limit = max_new_tokens or min(LONGEST_STORY, teller.positions - max(len(prompts[place]) for place in fits))
    order = sorted(fits, key=lambda place: len(prompts[place]))
    batches = [(seed, order[at : at + batch_size]) for seed in seeds for at in range(0, len(order), batch_size)]
    written: dict[tuple[int, int], list[int]] = {}
    total = len(fits) * len(seeds)
    for seed, batch in progress(batches, f"{Path(teller.name).name} writes", "stories", total, lambda b: len(b[1])):
        ids = teller.write(
            [prompts[place] for place in batch],
            [tasks[place].record_id for place in batch],
            limit,
            dataclasses.replace(sampling, seed=seed),
            batch_size,
        )
        written |= {(place, seed): story for place, story in zip(batch, ids, strict=True)}
    stories_PS = []
    for place in fits:
        ids_S = [written[place, seed] for seed in seeds]
        texts = [teller.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in ids_S]
        stories_PS.append(judged(texts, judge, [len(ids) < limit for ids in ids_S]))
    return Written(teller.name, teller.seed, teller.mode, [tasks[place] for place in fits], stories_PS, limit)


def score(written: list[Written], judge: Judge, coverage: Coverage | None, seed: int) -> list[dict[str, Any]]:
    """Return the rows of the table: each model's, of several their arm's, and the records' own."""
    from lm_trials.evaluation.constraint_scores import arm_rows, record_rows, score_rows

    rows, of_models = [], []
    for one in written:
        groups = _groups(coverage, one.tasks)
        scored = score_rows(one.tasks, one.stories_PS, judge.known, groups, seed)
        of_models.append(scored)
        rows += [{"row": "model", "model": one.model, "seed": one.seed, "models": 1, **row} for row in scored]
    if len(written) > 1:
        rows += [{"row": "arm", "model": f"mean of {len(written)} models", **row} for row in arm_rows(of_models)]
    shared = max(written, key=lambda one: len(one.tasks)).tasks
    own = record_rows(shared, judge, _groups(coverage, shared), seed)
    return rows + [{"row": "records", "model": "records' own stories", **row} for row in own]


def _groups(coverage: Coverage | None, tasks: list[Task]) -> dict[str, Any]:
    """Return the coverage's groups of the tasks that fitted a model."""
    return coverage.groups_of(tasks) if coverage else {}


def results_folder(args: ConstraintArguments, written: list[Written]) -> Path:
    """Return where the results lie: beside the model where it is one folder, else under `out`."""
    if args.output_dir:
        return Path(args.output_dir)
    about = Path(args.prompts).stem.replace(" ", "_") if args.prompts else f"{args.dataset_name}-{args.dataset_split}"
    name = f"constraints-{Path(about).name}-{written[0].mode}"
    model = Path(written[0].model)
    return model / "eval" / name if len(written) == 1 and model.is_dir() else Path("out") / name


if __name__ == "__main__":
    main()
