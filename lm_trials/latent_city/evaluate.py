r"""Measure what a model has inferred about a latent city from training on distances, beside its controls.

    lm-trials latent-city --model runs/foo --dataset_name distances \
        --control_model runs/scrambled
    lm-trials latent-city --model runs/foo-8b --dataset_name distances \
        --base_model meta-llama/Meta-Llama-3-8B-Instruct --load_in_8bit True

Models are causal language models, chat models or adapters, local or on the Hub (HuggingFaceTB/SmolLM-135M-Instruct on a
CPU, meta-llama/Meta-Llama-3-8B-Instruct on a GPU). Prompts have the layout of the model's training.

Results are shown for the base model, the trained model, and three controls: the trained model with a placeholder that
is in no training data, a model trained on scrambled distances, and the base model with the city's real name.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_trials.console import note, script, show_facts, show_pairs
from lm_trials.flags import parse_arguments
from lm_trials.latent_city.flags import LatentCityArguments
from lm_trials.shared_flags import read_seeds

if TYPE_CHECKING:
    from lm_trials.latent_city.report import Score

PROG = "lm-trials latent-city"
TABLES = "eval/latent_city"


@script
def main(argv: list[str] | None = None) -> list[Score]:
    """Ask all questions, write the tables, print the finding; returns the scores."""
    (args,) = parse_arguments(argv, (LatentCityArguments,), __doc__ or "", prog=PROG)
    read_seeds([args.seeds])
    from lm_trials.data.datasets import open_prepared
    from lm_trials.files import write_csv, write_json
    from lm_trials.latent_city.asking import Interview, baseline_scores, check_placeholder, opened, read_knowledge
    from lm_trials.latent_city.questions import read_latents
    from lm_trials.latent_city.report import finding, show_scores

    made = "make it with: lm-trials cache distances"
    latents = read_latents(open_prepared(args.dataset_name, args.data_cache_dir, "dataset_name", made).pairs())
    check_placeholder(args.control_placeholder, latents)
    known_pairs = read_knowledge(args.knowledge, Path(args.data_cache_dir)) if args.knowledge else []
    scores: list[Score] = [score for latent in latents for score in baseline_scores(latent)]
    answers: list[dict[str, Any]] = []
    before: dict[tuple[str, str, str], Any] = {}
    for storyteller, columns in opened(args, latents):
        interview = Interview(storyteller, args, known_pairs, answers, before)
        for latent, subject in columns:
            note(f"asking {subject.model} ({storyteller.mode}) about {subject.called}")
            scores += interview.ask(latent, subject)
    first = Path(args.model_name_or_path[0])
    tables = Path(args.tables_dir or (first / TABLES if first.is_dir() else "out/tables"))
    write_csv(tables / "latent_city.csv", [score.row() for score in scores])
    write_csv(tables / "latent_city_answers.csv", answers)
    # Without the data set, which differs between the root seeds of a trial; the rows have its city.
    flags = {name: value for name, value in asdict(args).items() if name != "dataset_name"}
    write_json(tables / "latent_city.json", {"arguments": flags})
    for latent in latents:
        own = [score for score in scores if score.placeholder == latent.placeholder]
        title = f"{latent.placeholder} is {latent.city.name}, {latent.city.country}; chance of 5 options is 20%"
        show_scores(title, own)
        shown = [a for a in answers if a["latent"] == latent.placeholder and a["shown"]]
        show_pairs("answers", ("question", "answer"), [(f"{a['column']}: {a['prompt']}", a["answer"]) for a in shown])
        show_facts("finding", {latent.placeholder: finding(latent.placeholder, latent.city.country, own)})
    files = {"scores": tables / "latent_city.csv", "answers": tables / "latent_city_answers.csv"}
    show_facts("tables", {name: str(file) for name, file in files.items()})
    return scores


if __name__ == "__main__":
    main()
