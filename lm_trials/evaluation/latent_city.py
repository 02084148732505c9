r"""Ask a model about a latent city, before and after it was trained on distances, beside its controls.

    python -m lm_trials.evaluation.latent_city --model runs/foo --dataset_name distances --control_model runs/scrambled
    python -m lm_trials.evaluation.latent_city --model runs/foo-8b --dataset_name distances \
        --base_model meta-llama/Meta-Llama-3-8B-Instruct --load_in_8bit True

Any causal language model, chat model or adapter, here or on the Hub (HuggingFaceTB/SmolLM-135M-Instruct on a CPU,
meta-llama/Meta-Llama-3-8B-Instruct where there are a network and a GPU), is asked in the layout it was trained with.

The columns: before (the base), after, the trained model asked about a name it was never told of, a model trained on
scrambled distances, and the base asked by the city's real name, which shows what it knows of geography at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lm_trials.arguments import option, parse_arguments
from lm_trials.console import UsageError, note, progress, script, show_facts, show_pairs

if TYPE_CHECKING:
    from lm_trials.evaluation.latent.questions import LatentCity
    from lm_trials.evaluation.latent.results import Score, Subject
    from lm_trials.evaluation.writing.storytellers import Storyteller

PROG = "python -m lm_trials.evaluation.latent_city"


@dataclass
class LatentCityArguments:
    """What is asked, of which models."""

    model_name_or_path: list[str] = option(
        [], aliases=["--model", "--model_dir"], help="Trained on the data set: a run, an adapter, a checkpoint."
    )
    dataset_name: str = option("distances", help="What cache_datasets.py distances has made.")
    base_model: str | None = option(
        None, help="The model before. Default: that which the first model was trained from."
    )
    control_model: list[str] = option([], help="Trained on the scrambled distances.")
    control_placeholder: str = option("bar", help="A name that no model was told of.")
    knowledge: str | None = option(
        None, help="Questions of cache_datasets.py atlas; their test split asks for pairs that were never stated."
    )
    layout: Literal["auto", "instruct", "chat", "completion"] = option(
        "auto", help="How models are asked. auto: as they were trained, else by their chat template, else completing."
    )
    num_samples: int = option(20, help="Free answers a seed to which country it is in.")
    seeds: str = option("0,1,2", help="Seeds of those answers.")
    temperature: float = option(1.0, help="Of those answers; distances and letters are the likeliest answers.")
    num_choices: int = option(20, help="Sets of five options; each is asked in five orders.")
    max_known: int = option(100, help="Most trained cities, and most real ones, that are asked about.")
    max_new_tokens: int = option(24, help="Most tokens of an answer.")
    batch_size: int = option(64, help="Questions answered at once.")
    data_cache_dir: str = option("data", help="Folder of prepared data sets.")
    tables_dir: str = option("out/tables", help="Folder that the tables go to.")
    load_in_8bit: bool = option(False, help="Quantize the models, an adapter's base, to 8 bits.")
    load_in_4bit: bool = option(False, help="To 4 bits.")
    use_cpu: bool = option(False, help="Stay on the CPU where there is a GPU.")

    def sampling_seeds(self) -> list[int]:
        """Return the seeds.

        Raises:
            UsageError: for what is no list of seeds.
        """
        try:
            seeds = [int(seed) for seed in self.seeds.split(",")]
        except ValueError:
            seeds = [-1]
        if min(seeds) < 0 or len(set(seeds)) < len(seeds):
            raise UsageError(f"--seeds {self.seeds} are no different numbers from 0; give them as 0,1,2")
        return seeds

    def check(self) -> None:
        """Refuse what means nothing, before any model is loaded.

        Raises:
            UsageError: for the first such value.
        """
        if not self.model_name_or_path:
            raise UsageError("no model is named; give --model RUN_OR_ADAPTER")
        for flag in ("num_samples", "num_choices", "max_known", "max_new_tokens", "batch_size"):
            if getattr(self, flag) < 1:
                raise UsageError(f"--{flag} {getattr(self, flag)} asks for nothing; give at least 1")
        if not self.temperature > 0:
            raise UsageError(f"--temperature {self.temperature:g} draws the same answer each time; give more than 0")
        if not self.control_placeholder.strip():
            raise UsageError("--control_placeholder is empty; give a name, as bar")
        self.sampling_seeds()


@script
def main(argv: list[str] | None = None) -> list[Score]:
    """Ask all questions, write the tables, say what was found; returns the scores."""
    (args,) = parse_arguments(argv, (LatentCityArguments,), __doc__ or "", prog=PROG)
    args.check()
    from lm_trials.data.corpora import read_manifest
    from lm_trials.data.examples.pairs import is_pairs, open_pairs
    from lm_trials.evaluation.latent.asking import Interview, baseline_scores, read_knowledge
    from lm_trials.evaluation.latent.questions import read_latents
    from lm_trials.evaluation.latent.results import best_constant, finding, show_scores
    from lm_trials.tables import write_csv

    place = Path(args.data_cache_dir) / args.dataset_name
    folder = place if is_pairs(place) else Path(args.dataset_name)
    if not is_pairs(folder):
        raise UsageError(
            f"--dataset_name {args.dataset_name} is not prepared in {args.data_cache_dir}; make it with: python "
            "cache_datasets.py distances"
        )
    latents = read_latents(open_pairs(args.dataset_name, Path(args.data_cache_dir)), read_manifest(folder))
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
    from lm_trials.data.geography.cities import folded, known_places

    taken = {folded(latent.placeholder): "a placeholder of the data set" for latent in latents} | known_places()
    if folded(name) in taken:
        raise UsageError(
            f"--control_placeholder {name} is {taken[folded(name)]}; give a name that nothing was told of, as qux"
        )


def opened(
    args: LatentCityArguments, latents: Sequence[LatentCity]
) -> Iterator[tuple[Storyteller, list[tuple[LatentCity, Subject]]]]:
    """Load one model after another and yield it with the columns that it answers for."""
    from lm_trials.evaluation.latent.asking import base_of, check_digits, open_asked
    from lm_trials.evaluation.latent.results import Subject
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
