r"""Prepare data: generate, fetch or read stories, train tokenizers, make tokens.

    lm-trials prepare generate --num_stories 20000 --seed 0
    lm-trials prepare download
    lm-trials prepare ingest --source stories.jsonl --corpus mine
    lm-trials prepare derive --corpus mine --words_per_story 60 \
        --dataset_name mine-60
    lm-trials prepare train_vocab --corpus generated --vocab_size 1000
    lm-trials prepare pretokenize --corpus generated --vocab_size 1000

Protocol sets (a protocol filters, relabels or rewrites the stories), prompts and
completions for fine-tuning, and a description of what is prepared:

    lm-trials prepare pretokenize --corpus generated --vocab_size 1000 \
        --filtering features!=Twist --adversarial_training features=Twist:1.0 \
        --dataset_name filter-adv-Twist
    lm-trials prepare protocol_set --vocab_size 1000 --feature_delete Twist \
        --feature_irrelevant Foreshadowing
    lm-trials prepare instruct --corpus generated --vocab_size 1000
    lm-trials prepare describe filter-adv-Twist
    lm-trials prepare describe --corpus generated

Pairs of a better and a worse story that a run writes for a prompt, by rewards:

    lm-trials prepare preferences --model_name_or_path runs/teller \
        --dataset_name generated-instruct-prompt \
        --reward_funcs words ends --num_samples 4 --margin 0.3

Metrics of each text, for --order_by and --keep of training, and their distributions:

    lm-trials prepare metadata --dataset_name generated \
        --preprocessing_num_workers 2
    lm-trials prepare metadata --dataset_name generated \
        --model_name_or_path runs/demo --metric mine.py:rhymes
    lm-trials prepare describe generated --metrics

Each of these commands has its own --help.  They write to --data_cache_dir:
data/<corpus>/records, data/tok<N>, data/<corpus>/tokens-<tokenizer>,
data/<set>/manifest.json, data/<corpus>-instruct-<style>/pairs,
data/<pairs>-preferences/pairs, data/<name>/metrics-<hash>.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from itertools import chain
from operator import length_hint
from pathlib import Path
from typing import Any

from lm_trials.console import (
    UsageError,
    command_line,
    did_you_mean,
    load_libraries,
    note,
    progress,
    script,
    show_facts,
)
from lm_trials.data.prepare_flags import (
    DeriveArguments,
    DescribeArguments,
    DownloadArguments,
    GenerateArguments,
    IngestArguments,
    InstructArguments,
    MetadataArguments,
    PretokenizeArguments,
    ProtocolSetArguments,
    SetArguments,
    TrainVocabArguments,
)
from lm_trials.flags import parse_arguments, show_commands
from lm_trials.rewards.flags import PreferenceArguments


def generate(args: GenerateArguments) -> dict[str, Any]:
    """Write generated stories as a corpus; returns its manifest."""
    from lm_trials.stories.corpora import write_corpus
    from lm_trials.stories.generated.generator import generate_stories
    from lm_trials.stories.records import SPLITS, record_from_row

    stories = progress(generate_stories(args.num_stories, args.seed), "writing stories", "stories", args.num_stories)
    origin = {
        "reference": "prepare_tinystories.py generate",
        "fingerprint": f"generated-{args.seed}-{args.num_stories}",
        "num_stories": args.num_stories,
        "seed": args.seed,
    }
    records = ((0, record_from_row(story)) for story in stories)
    manifest = write_corpus(records, args.folder, origin, splits_needed=SPLITS)
    describe_corpus(args.folder, manifest)
    return manifest


def download(args: DownloadArguments) -> list[Path]:
    """Fetch and unpack the archive; returns its shards."""
    from lm_trials.stories.download import FOLDER, download_archive, local_archive, unpack_archive, unpacked_shards

    folder = Path(args.data_cache_dir)
    shards = unpacked_shards(folder / FOLDER)
    if not shards:
        shards = unpack_archive(local_archive(folder) or download_archive(folder), folder / FOLDER)
    show_facts(
        "TinyStories",
        {
            "shards": f"{len(shards)} in {folder / FOLDER}",
            "next": command_line("prepare ingest", corpus="tinystories", data_cache_dir=folder),
        },
    )
    return shards


def ingest(args: IngestArguments) -> dict[str, Any]:
    """Read a source into a corpus; returns its manifest."""
    from lm_trials.stories import corpora
    from lm_trials.stories.sources import open_source

    source = open_source(
        args.source,
        text_column=args.text_column,
        text_separator=args.text_separator,
        dataset_config_name=args.dataset_config_name,
        dataset_split=args.dataset_split,
        validation_split_percentage=args.validation_split_percentage,
    )
    watch = lambda records: progress(records, f"reading {args.source}", "stories")  # noqa: E731
    manifest = corpora.ingest(source, args.folder, args.split_by, watch)
    describe_corpus(args.folder, manifest)
    return manifest


def derive(args: DeriveArguments) -> dict[str, Any]:
    """Make a corpus of another; returns its manifest."""
    from lm_trials.protocols.derived import derive_corpus
    from lm_trials.protocols.protocols import parse_filtering
    from lm_trials.protocols.transforms import parse_transforms

    folder = Path(args.data_cache_dir) / args.dataset_name
    watch = lambda records: progress(records, "writing stories", "stories")  # noqa: E731
    manifest = derive_corpus(
        args.folder,
        folder,
        parse_filtering(args.filtering),
        args.words_per_story,
        args.resample_words,
        args.seed,
        watch,
        parse_transforms(args.transform),
    )
    describe_corpus(folder, manifest)
    return manifest


def train_vocab(args: TrainVocabArguments) -> Path:
    """Train the tokenizer; returns its folder."""
    from lm_trials.files import finished_folder
    from lm_trials.stories.corpora import open_records
    from lm_trials.tokens.mixtures import mixed
    from lm_trials.tokens.tokenizers import train_tokenizer

    folder = Path(args.data_cache_dir) / f"tok{args.vocab_size}"
    if folder.exists():
        raise UsageError(f"{folder} holds a tokenizer already; remove it to train it anew")
    corpora = [Path(args.data_cache_dir) / name for name in args.corpus.split("+")]
    splits = [open_records(corpus, "train") for corpus in corpora]
    splits = [records.select(range(min(args.max_stories, len(records)))) for records in splits]
    parts = [chain.from_iterable(b["story"] for b in part.select_columns(["story"]).iter(1000)) for part in splits]
    stories = mixed(parts, [1 / len(parts)] * len(parts), size=len)  # until the first of them ends
    total = len(splits[0]) if len(splits) == 1 else None
    tokenizer = train_tokenizer(progress(stories, "reading stories", "stories", total), args.vocab_size)
    if len(tokenizer) < args.vocab_size / 2:  # the folder would have a name that is not its content
        raise UsageError(
            f"--vocab_size {args.vocab_size}: the stories give only {len(tokenizer)} tokens; give that or more stories"
        )
    with finished_folder(folder) as unfinished:
        tokenizer.save_pretrained(unfinished)
    fewer = f" of {args.vocab_size:,}" if len(tokenizer) < args.vocab_size else ""
    one = len(corpora) == 1
    following = command_line(
        "prepare pretokenize" if one else "train",
        **{"corpus" if one else "dataset_name": args.corpus},
        vocab_size=args.vocab_size,
        data_cache_dir=args.data_cache_dir,
    )
    show_facts("tokenizer", {"tokens": f"{len(tokenizer):,}{fewer}", "folder": str(folder), "next": following})
    return folder


def pretokenize(args: PretokenizeArguments) -> Any:
    """Make the token store and return its folder, or the set of a protocol and return its report."""
    from lm_trials.stories.corpora import read_manifest
    from lm_trials.tokens.stores import make_store, token_progress
    from lm_trials.tokens.tokenizers import resolve_vocab

    protocol = args.protocol()
    if protocol:
        return make_protocol_sets(args, {args.dataset_name or protocol.name(): protocol})[0]
    if args.dry_run:
        raise UsageError("--dry_run shows what a protocol would do; give one, as --filtering features!=Twist")
    tokenizer = resolve_vocab(args.vocab_size, args.tokenizer_name, args.data_cache_dir)
    folder = make_store(args.folder, tokenizer, args.append_eos, watch=token_progress)
    manifest = read_manifest(folder)
    facts = {
        split: f"{manifest['documents'][split]:,} stories, {n:,} tokens" for split, n in manifest["tokens"].items()
    }
    given = {"vocab_size": args.vocab_size or None, "tokenizer_name": args.tokenizer_name}
    following = command_line("train", dataset_name=args.corpus, **given, data_cache_dir=args.data_cache_dir)
    show_facts("tokens", {**facts, "folder": str(folder), "next": following})
    return folder


def protocol_set(args: ProtocolSetArguments) -> list[dict[str, Any]]:
    """Make the sets of the deletion and recovery study; returns their reports."""
    from lm_trials.protocols.protocols import deletion_recovery_protocols

    protocols = deletion_recovery_protocols(
        args.feature_delete, args.feature_irrelevant, transform=args.transform, **args.written()
    )
    return make_protocol_sets(args, protocols)


def make_protocol_sets(args: SetArguments, protocols: dict[str, Any]) -> list[dict[str, Any]]:
    """Make sets, or only count them for `--dry_run`, and say what they hold; returns their reports."""
    from lm_trials.protocols.report import describe_set, scratch_corpus, show_set, show_sets
    from lm_trials.protocols.sets import check_sets, make_sets, set_progress
    from lm_trials.tokens.tokenizers import resolve_vocab

    args.check_names(protocols)
    tokenizer = resolve_vocab(args.vocab_size, args.tokenizer_name, args.data_cache_dir)
    check_sets(args.folder, protocols, Path(args.data_cache_dir))
    if args.dry_run:
        with scratch_corpus(args.folder) as corpus:
            manifests = make_sets(corpus, tokenizer, protocols, corpus.parent, args.append_eos, set_progress)
    else:
        manifests = make_sets(
            args.folder, tokenizer, protocols, Path(args.data_cache_dir), args.append_eos, set_progress
        )
    reports = [describe_set(name, manifest, args.folder) for name, manifest in manifests.items()]
    if len(reports) == 1:
        show_set(reports[0])
    else:
        show_sets(reports)
    name = reports[0]["name"]
    following = f"{command_line('prepare describe', data_cache_dir=args.data_cache_dir)} {shlex.quote(name)}"
    if args.dry_run:
        following = "the same command without --dry_run; nothing was written"
    place = str(Path(args.data_cache_dir) / (name if len(reports) == 1 else "<set>"))
    show_facts("sets", {"folder": "none" if args.dry_run else place, "next": following})
    return reports


def instruct(args: InstructArguments) -> dict[str, Any]:
    """Write a corpus's stories with what asks for them as a data set of pairs; returns its manifest."""
    from lm_trials.pairs.instruct import make_instruct_set, show_instruct_set
    from lm_trials.pairs.pairs import check_free

    corpus, folder, recipe = args.folder, args.set_folder, args.recipe()
    check_free(folder)
    watch = lambda batches, total, split: progress(  # noqa: E731
        batches, f"pairs of {split}", "stories", total, size=lambda batch: len(batch["record_id"])
    )
    manifest = make_instruct_set(corpus, folder, recipe, watch, keep=not args.dry_run)
    facts = {
        "folder": str(folder),
        "next": command_line(
            "tune", model_name_or_path="RUN", dataset_name=folder.name, data_cache_dir=args.data_cache_dir
        ),
    }
    if args.dry_run:
        facts = {"folder": "none", "next": "the same command without --dry_run; nothing was written"}
    show_instruct_set(manifest, recipe, facts)
    return manifest


def preferences(args: PreferenceArguments) -> dict[str, Any]:
    """Write pairs of a better and a worse story of a run, by rewards; returns their manifest."""
    load_libraries()
    from lm_trials.rewards.preferences import make_preferences, show_preferences

    manifest = make_preferences(args)
    show_preferences(manifest, args.folder)
    return manifest


def metadata(args: MetadataArguments) -> list[Path]:
    """Measure the texts of a data set; returns the folder of its table, of a mixture those of its data sets."""
    from lm_trials.data.datasets import dataset_of
    from lm_trials.metrics.tables import make_metrics, write_table
    from lm_trials.metrics.texts import Measures, parse_metrics, read_words

    functions = parse_metrics(args.metric)
    flagged = {"flagged": read_words(args.flagged_words, "--flagged_words")} if args.flagged_words else {}
    measures = Measures(reference=args.bleu_reference, sentiment=args.sentiment, functions=functions, **flagged)
    scorer = None
    if args.model_name_or_path:
        load_libraries()
        from lm_trials.evaluation.model_losses import ModelLosses

        scorer = ModelLosses(args.model_name_or_path, args.use_cpu, args.per_device_eval_batch_size)
    datasets = [member.as_prepared() for member in dataset_of(args).members]
    folders = []
    for dataset in datasets:
        watch = lambda texts, label=dataset.label: progress(texts, f"metrics of {label}", "texts", length_hint(texts))  # noqa: E731
        folder = make_metrics(dataset, measures, scorer, args.preprocessing_num_workers, watch)
        table = Path(args.output_dir) / ("" if len(datasets) == 1 else dataset.label) / "batch_metrics.csv"
        rows = write_table(folder, table)
        name = {"dataset_name": folder.parent.name, "data_cache_dir": args.data_cache_dir}
        facts = {
            "texts": f"{len(rows):,}",
            "metrics": ", ".join(rows.column_names[3:]),
            "folder": str(folder),
            "table": str(table),
            "next": command_line("prepare describe", metrics=True, **name),
        }
        show_facts(f"metrics of {dataset.label}", facts)
        folders.append(folder)
    return folders


def describe(args: DescribeArguments) -> dict[str, Any]:
    """Show what a set or a corpus is; returns what is shown."""
    if args.metrics:
        from lm_trials.data.datasets import open_dataset
        from lm_trials.metrics.describe import describe_metrics

        dataset = open_dataset(args.dataset_name or args.corpus, args.data_cache_dir)
        report = describe_metrics(dataset, Path(args.output_dir))
    else:
        report = describe_protocol(args) if args.dataset_name else describe_texts(args)
    if args.json:
        import json

        Path(args.json).parent.mkdir(parents=True, exist_ok=True)
        Path(args.json).write_text(json.dumps(report, indent=2) + "\n")
        note(f"written to {args.json}")
    return report


def describe_protocol(args: DescribeArguments) -> dict[str, Any]:
    """Show what a set's protocol did."""
    from lm_trials.protocols.report import describe_set, show_set
    from lm_trials.protocols.set_texts import resolve_set
    from lm_trials.stories.corpora import read_manifest

    folder, corpus, _ = resolve_set(str(args.dataset_name), Path(args.data_cache_dir))
    report = describe_set(folder.name, read_manifest(folder), corpus)
    show_set(report)
    return report


def describe_texts(args: DescribeArguments) -> dict[str, float]:
    """Compare the held-out stories of a corpus with its train split; returns the figures of `describe_variety`."""
    from itertools import chain, islice

    from lm_trials.stories.corpora import open_records
    from lm_trials.stories.variety import describe_variety

    records = open_records(args.folder)
    train = [row["story"] for row in islice(records["train"], args.max_stories)]
    rows = islice(chain(records["validation"], records["test"]), args.max_held_out)
    held_out = [row["story"] for row in rows]
    if not held_out:
        raise UsageError(f"{args.folder} has no held-out story; prepare more stories")
    note(f"comparing {len(held_out):,} held-out with {len(train):,} train stories ...")
    report = describe_variety(train, held_out)
    facts = {
        "train stories": f"{report['num_stories']:,}, {report['distinct_stories_share']:.1%} distinct",
        "sentences": f"{report['num_sentences']:,}, {report['distinct_sentences_share']:.1%} distinct",
        "words": f"{report['distinct_words']:,} distinct",
        "compression": f"{report['compression_ratio']:.2f} times smaller after xz",
        "held-out stories": f"{report['num_held_out']:,}, of {report['held_out_words_median']:g} words (median)",
        "longest overlap": f"{report['overlap_median']:g} words verbatim in a train story (median), "
        f"{report['overlap_max']:,} at most",
        "seen whole": f"{report['held_out_seen_whole']:,} held-out stories stand whole in a train story",
    }
    show_facts(f"variety of {args.corpus}", facts)
    return report


def describe_corpus(folder: Path, manifest: dict[str, Any]) -> None:
    """Say what a corpus holds, and the next command."""
    from lm_trials.stories.corpora import in_two_splits

    stories, total = manifest["stories"], sum(manifest["stories"].values())
    features = ", ".join(f"{name} {count / total:.0%}" for name, count in manifest["features"].items())
    facts = {
        "stories": f"{total:,}: " + ", ".join(f"{count:,} {split}" for split, count in stories.items()),
        "duplicates": f"{manifest['duplicates']:,} stories repeat an earlier one",
        "features": features or "none named",
        "folder": str(folder),
    }
    if manifest["blank"]:
        facts["blank"] = f"{manifest['blank']:,} records without a story were left out"
    if manifest["split_by"] != "hash" and (shared := in_two_splits(manifest)):
        facts["in two splits"] = shared
    facts["next"] = command_line("train", dataset_name=folder.name, data_cache_dir=folder.parent)
    show_facts(folder.name, facts)


COMMANDS: dict[str, tuple[type, Callable[[Any], Any]]] = {
    "generate": (GenerateArguments, generate),
    "download": (DownloadArguments, download),
    "ingest": (IngestArguments, ingest),
    "derive": (DeriveArguments, derive),
    "train_vocab": (TrainVocabArguments, train_vocab),
    "pretokenize": (PretokenizeArguments, pretokenize),
    "protocol_set": (ProtocolSetArguments, protocol_set),
    "instruct": (InstructArguments, instruct),
    "preferences": (PreferenceArguments, preferences),
    "metadata": (MetadataArguments, metadata),
    "describe": (DescribeArguments, describe),
}


def command_arguments(name: str, rest: list[str]) -> Any:
    """Parse what follows a command's name; `describe NAME` is short for `describe --dataset_name NAME`."""
    if name not in COMMANDS:
        raise UsageError(f"{name} is not a command; {did_you_mean(name, COMMANDS)}")
    arguments, _ = COMMANDS[name]
    first = "dataset_name" if name == "describe" else None
    prog = f"lm-trials prepare {name}"
    (args,) = parse_arguments(rest, (arguments,), arguments.__doc__ or "", prog=prog, first=first)
    return args


@script
def main(argv: list[str] | None = None) -> Any:
    """Run one command; returns what it made."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        show_commands("lm-trials prepare", __doc__ or "", COMMANDS)
        raise SystemExit(0)
    name, *rest = argv
    args = command_arguments(name, rest)
    return COMMANDS[name][1](args)


if __name__ == "__main__":
    main()
