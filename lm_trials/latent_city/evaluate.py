r"""Ask a model about a latent city, before and after it was trained on distances, beside its controls.

    python -m lm_trials.latent_city.evaluate --model runs/foo --dataset_name distances --control_model runs/scrambled
    python -m lm_trials.latent_city.evaluate --model runs/foo-8b --dataset_name distances \
        --base_model meta-llama/Meta-Llama-3-8B-Instruct --load_in_8bit True

Any causal language model, chat model or adapter, here or on the Hub (HuggingFaceTB/SmolLM-135M-Instruct on a CPU,
meta-llama/Meta-Llama-3-8B-Instruct where there are a network and a GPU), is asked in the layout it was trained with.

The columns: before (the base), after, the trained model asked about a name it was never told of, a model trained on
scrambled distances, and the base asked by the city's real name, which shows what it knows of geography at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_trials.console import UsageError, note, progress, script, show_facts, show_pairs
from lm_trials.flags import parse_arguments
from lm_trials.latent_city.flags import LatentCityArguments

if TYPE_CHECKING:
    from lm_trials.evaluation.storytellers import Storyteller
    from lm_trials.latent_city.questions import LatentCity
    from lm_trials.latent_city.report import Score, Subject

PROG = "python -m lm_trials.latent_city.evaluate"


@script
def main(argv: list[str] | None = None) -> list[Score]:
    """Ask all questions, write the tables, say what was found; returns the scores."""
    (args,) = parse_arguments(argv, (LatentCityArguments,), __doc__ or "", prog=PROG)
    args.sampling_seeds()
    from lm_trials.data.datasets import open_prepared
    from lm_trials.files import write_csv
    from lm_trials.latent_city.asking import Interview, baseline_scores, read_knowledge
    from lm_trials.latent_city.questions import read_latents
    from lm_trials.latent_city.report import best_constant, finding, show_scores

    made = "make it with: python cache_datasets.py distances"
    latents = read_latents(open_prepared(args.dataset_name, args.data_cache_dir, "dataset_name", made).pairs())
    check_placeholder(args.control_placeholder, latents)
    known_pairs = read_knowledge(args.knowledge, Path(args.data_cache_dir)) if args.knowledge else []
    scores: list[Score] = [score for latent in latents for score in baseline_scores(latent)]
    answers: list[dict[str, Any]] = []
    for storyteller, columns in opened(args, latents):
        interview = Interview(storyteller, args, known_pairs, answers)
        for latent, subject in columns:
            note(f"asking {subject.model} ({storyteller.mode}) about {subject.called}")
            scores += interview.ask(latent, subject)
    tables = Path(args.tables_dir)
    write_csv(tables / "latent_city.csv", [score.row() for score in scores])
    write_csv(tables / "latent_city_answers.csv", answers)
    for latent in latents:
        own = [score for score in scores if score.placeholder == latent.placeholder]
        constants = {
            s.subject.label: s.estimate for s in own if s.subject.role == "baseline" and s.estimate.unit == "km"
        }
        title = f"{latent.placeholder} is {latent.city.name}, {latent.city.country}; chance of 5 is 20 %"
        show_scores(title, own, best_constant(constants) or None)
        told = [a for a in answers if a["latent"] == latent.placeholder and a["shown"]]
        show_pairs("answers", ("question", "answer"), [(f"{a['column']}: {a['prompt']}", a["answer"]) for a in told])
        show_facts("finding", {latent.placeholder: finding(latent.placeholder, latent.city.country, own)})
    show_facts(
        "tables", {"scores": str(tables / "latent_city.csv"), "answers": str(tables / "latent_city_answers.csv")}
    )
    return scores


def check_placeholder(name: str, latents: Sequence[LatentCity]) -> None:
    """Refuse a control that is no control: a placeholder of the data set, or a city that a model knows.

    Raises:
        UsageError: for such a name.
    """
    from lm_trials.latent_city.cities import folded, known_places

    taken = {folded(latent.placeholder): "a placeholder of the data set" for latent in latents} | known_places()
    if folded(name) in taken:
        raise UsageError(
            f"--control_placeholder {name} is {taken[folded(name)]}; give a name that nothing was told of, as qux"
        )


def opened(
    args: LatentCityArguments, latents: Sequence[LatentCity]
) -> Iterator[tuple[Storyteller, list[tuple[LatentCity, Subject]]]]:
    """Load one model after another and yield it with the columns that it answers for."""
    from lm_trials.latent_city.asking import base_of, check_digits, open_asked
    from lm_trials.latent_city.report import Subject
    from lm_trials.models.reference import resolve_model

    base = args.base_model or base_of(args.model_name_or_path[0])
    for name in (*([base] if base else []), *args.model_name_or_path, *args.control_model):
        resolve_model(name)  # a name that is none is told before minutes are spent on another
    if base is None:
        note(f"note: {args.model_name_or_path[0]} names no base, so there is no column before; give --base_model")
    plan: list[tuple[str, list[tuple[str, str]]]] = [
        *([(base, [("before", "before"), ("real", "base,\nreal name")])] if base else []),
        *((name, [("after", "after"), ("untrained", "untrained")]) for name in args.model_name_or_path),
        *((name, [("scrambled", "scrambled")]) for name in args.control_model),
    ]
    for name, roles in progress(plan, "asking", "models", len(plan)):
        storyteller = open_asked(name, args)
        check_digits(storyteller)
        columns = []
        for latent in latents:
            for role, label in roles:
                called = {"real": latent.city.name, "untrained": args.control_placeholder}.get(role, latent.placeholder)
                several = {"scrambled": args.control_model}.get(role, args.model_name_or_path)
                where = f"\n{Path(name).name}" if len(several) > 1 and role not in ("before", "real") else ""
                label = f"after,\n{called}" if role == "untrained" else label
                columns.append((latent, Subject(label + where, role, name, called, storyteller.seed)))
        yield storyteller, columns


if __name__ == "__main__":
    main()
