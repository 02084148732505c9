r"""Fetch data sets and prepare them once; list and verify what is prepared.

    lm-trials cache --dataset_name roneneldan/TinyStories --num_proc 8
    lm-trials cache --dataset_name stories.jsonl --vocab_size 8192
    lm-trials cache --dataset_name SudharsanSundar/PileSubsets \
        --dataset_config_name pubmed+uspto --validation_split_percentage 1 \
        --tokenizer_name gpt2
    lm-trials cache list
    lm-trials cache verify
    lm-trials cache recipe cache_pile
    lm-trials cache atlas
    lm-trials cache distances --city Paris --placeholder foo

Flags alone mean `fetch`; each command has its own --help.  An interrupted command
resumes when it is run again.  Training with the same --dataset_name and flags
uses the prepared data.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_trials.console import UsageError, command_line, did_you_mean, note, progress, script, show_facts, show_table
from lm_trials.data.cache_flags import FetchArguments, ListArguments, RecipeArguments, VerifyArguments
from lm_trials.flags import parse_arguments, recipe_file, show_commands
from lm_trials.latent_city.flags import AtlasArguments, DistancesArguments

if TYPE_CHECKING:
    from lm_trials.data.datasets import DataSet

STOPPED = 130  # exit status of a command that Ctrl-C ended


def fetch(args: FetchArguments) -> list[Path]:
    """Prepare each part of a data set, and its tokens if asked; returns the corpus folders."""
    from lm_trials.data.datasets import dataset_of
    from lm_trials.data.recipes import check_fetch

    check_fetch(args)
    return [fetch_member(member, args) for member in dataset_of(args).members]


def fetch_member(dataset: DataSet, args: FetchArguments) -> Path:
    """Prepare a data set, or one member of a mixture, and say what it holds."""
    from lm_trials.stories.corpora import read_manifest

    corpus = dataset.corpus()
    stories = read_manifest(corpus, "stories")["stories"]
    facts = {
        "stories": f"{sum(stories.values()):,}: " + ", ".join(f"{count:,} {split}" for split, count in stories.items()),
        "folder": str(corpus),
    }
    if args.wants_tokens():
        facts["tokens"] = str(make_tokens(corpus, args))
    facts["next"] = train_command(dataset.name, dataset.config, args)
    show_facts(f"{dataset.name} {dataset.config}" if dataset.config else dataset.name, facts)
    return corpus


def make_tokens(corpus: Path, args: FetchArguments) -> Path:
    """Make the token store of a corpus; returns its folder."""
    from lm_trials.tokens.stores import make_store, token_progress
    from lm_trials.tokens.tokenizers import resolve_vocab

    tokenizer = resolve_vocab(args.vocab_size, args.tokenizer_name, args.data_cache_dir)
    return make_store(corpus, tokenizer, args.append_eos, watch=token_progress)


def train_command(name: str, config: str | None, args: FetchArguments) -> str:
    """Return the command that trains on a part."""
    shared = ("text_column", "validation_split_percentage", "vocab_size", "tokenizer_name", "append_eos")
    given = {flag: getattr(args, flag) for flag in (*shared, "data_cache_dir")}
    return command_line("train", dataset_name=name, dataset_config_name=config, **given)


def show_list(args: ListArguments) -> list[dict[str, Any]]:
    """Show what is prepared; returns it."""
    from lm_trials.data.inventory import cached, unfinished

    place = Path(args.data_cache_dir)
    found = cached(place)
    rows = []
    for item in found:
        stories = " / ".join(f"{count:,}" for count in item.stories.values()) or "-"
        source = f"set of {item.source}" if item.kind == "set" else item.source or item.kind
        source += f"@{item.revision[:8]}" if item.revision else ""
        stores = ", ".join(name.removeprefix("tokens-") for name in item.stores) or "-"
        rows.append([item.name, stories, f"{item.num_bytes / 1e6:,.1f}", item.content or "-", source, stores])
    columns = ["name", "train /\nvalidation / test", "MB", "content", "source", "token stores"]
    stopped = unfinished(place)
    caption = f"interrupted; run the same command again to resume: {', '.join(stopped)}" if stopped else None
    if rows or stopped:
        show_table(str(place), columns, rows, caption)
    else:
        note(f"{place} holds nothing prepared")
    report = [asdict(item) for item in found]
    if args.json:
        from lm_trials.files import write_json

        write_json(Path(args.json), {"prepared": report, "stopped": stopped})
        note(f"written to {args.json}")
    return report


def verify(args: VerifyArguments) -> list[str]:
    """Check what is prepared and show the outcome; returns the names that were checked.

    Raises:
        UsageError: for the first thing that is damaged.
    """
    from lm_trials.data.inventory import check_cached_names, faults_of

    folders = check_cached_names(args.names, Path(args.data_cache_dir))
    watch = lambda batches: progress(batches, "reading", "stories", size=lambda batch: len(batch[1]["record_id"]))  # noqa: E731
    faults = {folder: list(faults_of(folder, watch)) for folder in folders}
    rows = [[folder.name, "\n".join(found) or "whole"] for folder, found in faults.items()]
    show_table(args.data_cache_dir, ["name", "verdict"], rows)
    for folder, found in faults.items():
        if found:
            damaged = sum(map(bool, faults.values()))
            raise UsageError(
                f"{folder}: {found[0]}; {damaged} of {len(folders)} are damaged: remove the folder and run the command "
                "that made it again"
            )
    return [folder.name for folder in folders]


def recipe(args: RecipeArguments) -> dict[str, Any]:
    """Fetch what a recipe lists, one after the other, past those that fail; returns folders by data set.

    Raises:
        UsageError: for a recipe that is wrong, before anything is fetched; at the end, if some could not be had.
    """
    from lm_trials.data.recipes import read_recipe

    if not args.file:
        raise UsageError("no recipe is named; give recipe FILE.yaml, for example recipe cache_pile")
    entries = read_recipe(recipe_file(args.file))
    folders: dict[str, Any] = {}
    failed: list[str] = []
    for number, entry in enumerate(entries, start=1):
        name = " ".join(filter(None, (entry.dataset_name, entry.dataset_config_name)))
        note(f"{number} of {len(entries)}: {name}")
        try:
            folders[name] = fetch(entry)
        except UsageError as error:
            note(f"failed: {error}")
            failed.append(name)
    if failed:
        raise UsageError(
            f"{len(failed)} of {len(entries)} data sets of {args.file} could not be fetched: {', '.join(failed)}; the "
            "others are there, and the same command tries again"
        )
    return folders


def atlas(args: AtlasArguments) -> dict[str, Any]:
    """Write the atlas and its questions; returns their manifests by name."""
    from lm_trials.latent_city.atlas_files import check_atlas, write_atlas

    folder = Path(args.data_cache_dir)
    chosen = check_atlas(args)
    watch = lambda texts: progress(texts, "writing documents", "documents", args.num_documents)  # noqa: E731
    manifests = write_atlas(chosen, args, folder, watch)
    corpus, asked = manifests.values()
    lost = corpus["origin"]["left_out"]
    counts = ", ".join(f"{count:,} {split}" for split, count in corpus["stories"].items())
    show_facts(
        args.name,
        {
            "cities": f"{len(chosen.cities)} in {len({city.country for city in chosen.cities})} countries",
            "not joined": "; ".join(lost) or "none",
            "documents": f"{sum(corpus['stories'].values()):,}: {counts}; {corpus['duplicates']:,} repeat another",
            "questions": ", ".join(f"{count:,} {split}" for split, count in asked["rows"].items()),
            "folders": f"{folder / args.name}, {folder / args.questions_name}",
            "next": command_line(
                "prepare train_vocab", corpus=args.name, vocab_size=1536, data_cache_dir=args.data_cache_dir
            ),
        },
    )
    return manifests


def distances(args: DistancesArguments) -> dict[str, Any]:
    """Write a data set of distances to latent cities; returns its manifest."""
    from lm_trials.latent_city.distances import plan_distances, write_distances

    plan, source = plan_distances(args)
    manifest = write_distances(plan, source)
    rows, latents = manifest["rows"], manifest["latent"]
    facts = {
        "latent": "; ".join(f"{one['placeholder']} is {one['name']}, {one['country']}" for one in latents),
        "known": f"{max(one['known_cities'] for one in latents)} cities of {source['cities']}",
        "not joined": "; ".join(source.get("left_out", [])) or "none",
        "rows": ", ".join(f"{count:,} {split}" for split, count in rows.items()),
        "control": "scrambled: each known city has another's distance" if args.control == "scrambled" else "none",
    }
    shown = (row for _, row in plan.rows() if row["placeholder"])
    for number, row in zip(range(3), shown, strict=False):
        facts[f"row {number + 1}"] = f"{row['prompt']}  {row['completion']}"
    name = args.dataset()
    facts["folder"] = str(Path(args.data_cache_dir) / name)
    facts["next"] = command_line(
        "tune", model_name_or_path="RUN", dataset_name=name, config="latent_city", data_cache_dir=args.data_cache_dir
    )
    show_facts(name, facts)
    return manifest


COMMANDS: dict[str, tuple[type, Callable[[Any], Any]]] = {
    "fetch": (FetchArguments, fetch),
    "list": (ListArguments, show_list),
    "verify": (VerifyArguments, verify),
    "recipe": (RecipeArguments, recipe),
    "distances": (DistancesArguments, distances),
    "atlas": (AtlasArguments, atlas),
}


def command_arguments(argv: list[str]) -> tuple[str, Any]:
    """Parse a command line into its command and arguments; flags alone are those of `fetch`."""
    name, *rest = argv if not argv[0].startswith("-") else ["fetch", *argv]
    if name not in COMMANDS:
        raise UsageError(f"{name} is not a command; {did_you_mean(name, COMMANDS)}; fetch takes --dataset_name {name}")
    arguments, _ = COMMANDS[name]
    words = next((place for place, word in enumerate(rest) if word.startswith("-")), len(rest))
    if name == "verify" and words:
        rest = ["--names", *rest]
    if name == "recipe" and words:
        rest = ["--file", *rest]
    (args,) = parse_arguments(rest, (arguments,), arguments.__doc__ or "", prog=f"lm-trials cache {name}")
    return name, args


@script
def main(argv: list[str] | None = None) -> Any:
    """Run one command; returns what it made."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        show_commands("lm-trials cache", __doc__ or "", COMMANDS)
        raise SystemExit(0)
    name, args = command_arguments(argv)
    try:
        return COMMANDS[name][1](args)
    except KeyboardInterrupt:
        note(f"Interrupted. Run the same command again to resume: lm-trials cache {shlex.join(argv)}")
        raise SystemExit(STOPPED) from None


if __name__ == "__main__":
    main()
