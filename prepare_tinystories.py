"""Prepare stories: generate or fetch them, read any source, train a tokenizer, make tokens, describe a corpus.

    python prepare_tinystories.py generate --num_stories 20000 --seed 0
    python prepare_tinystories.py download
    python prepare_tinystories.py ingest --source stories.jsonl --corpus mine
    python prepare_tinystories.py train_vocab --corpus generated --vocab_size 1024
    python prepare_tinystories.py pretokenize --corpus generated --vocab_size 1024
    python prepare_tinystories.py describe --corpus generated

Each command has its own --help.  Everything lies in --data_cache_dir: data/<corpus>/records, data/tok<N>,
data/<corpus>/tokens-<tokenizer>.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lm_trials.arguments import option, parse_arguments
from lm_trials.console import UsageError, did_you_mean, note, progress, script, show_facts


@dataclass
class CorpusArguments:
    """Where the corpus lies."""

    corpus: str = option("generated", help="Name of the corpus, a folder in --data_cache_dir.")
    data_cache_dir: str = option("data", help="Folder of prepared corpora, token stores and tokenizers.")

    @property
    def folder(self) -> Path:
        """The corpus folder.

        Raises:
            UsageError: for a name that would lie elsewhere.
        """
        if Path(self.corpus).name != self.corpus or self.corpus.startswith("."):
            raise UsageError(
                f"--corpus {self.corpus!r} is no plain name; give one such as stories, and its place with "
                "--data_cache_dir"
            )
        return Path(self.data_cache_dir) / self.corpus


@dataclass
class GenerateArguments(CorpusArguments):
    """Write stories from this project's grammar, with their words and features."""

    num_stories: int = option(20_000, help="Stories to write.")
    seed: int = option(0, help="Seed of the stories; story i is the same in a corpus of any size.")


@dataclass
class DownloadArguments:
    """Fetch the TinyStories archive (1.6 GB) from the Hub, check it and unpack its 50 shards."""

    data_cache_dir: str = option("data", help="Folder that the archive and its shards go to.")


@dataclass
class IngestArguments(CorpusArguments):
    """Read a source into a corpus: records, splits, counts."""

    source: str = option(
        "data/TinyStories_all_data", help="A file, a folder of shards, a saved data set or a Hub name."
    )
    split_by: Literal["hash", "shard"] = option(
        "hash", help="hash: 98/1/1 by content. shard: shard 0 is the test split."
    )
    text_column: str | None = option(None, help="Column that holds the story. Default: story, else text.")
    text_separator: str = option("<|endoftext|>", help="What stands between two stories of a text file.")
    dataset_config_name: str | None = option(None, help="Configuration of a Hub data set, or part of a folder.")
    dataset_split: str | None = option(None, help="Split of a Hub or saved data set to read.")


@dataclass
class TrainVocabArguments(CorpusArguments):
    """Train a byte-fallback BPE tokenizer on the train split, Llama-style, into data/tok<N>."""

    vocab_size: int = option(8192, help="Tokens of the vocabulary, with 3 special ones and 256 bytes.")
    max_stories: int = option(1_000_000, help="Stories read, from the start; the seeds read 10 of 50 shards.")


@dataclass
class PretokenizeArguments(CorpusArguments):
    """Make a corpus's tokens once, BOS before each story."""

    vocab_size: int = option(0, help="The tokenizer trained with this size; 0: --tokenizer_name, Llama 2's.")
    tokenizer_name: str | None = option(None, help="Tokenizer: a folder, a SentencePiece .model file or a Hub name.")
    append_eos: bool = option(False, help="Close each story with EOS too.")


@dataclass
class DescribeArguments(CorpusArguments):
    """Say how varied a corpus is, and how much of its held-out stories stands verbatim in the train split."""

    max_stories: int = option(20_000, help="Train stories compared, from the start; 20,000 take about 6 seconds.")
    max_held_out: int = option(1_000, help="Stories of the validation and test splits that are compared with them.")


def generate(args: GenerateArguments) -> dict[str, Any]:
    """Write generated stories as a corpus; returns its manifest."""
    from lm_trials.data.corpora import write_corpus
    from lm_trials.data.generator import generate_stories
    from lm_trials.data.records import SPLITS, record_from_row

    if args.num_stories < 100:
        raise UsageError(f"--num_stories {args.num_stories} leaves a split empty; give at least 100")
    if args.seed < 0:
        raise UsageError(f"--seed {args.seed} is no seed; give 0 or more")
    stories = progress(generate_stories(args.num_stories, args.seed), "writing stories", "stories", args.num_stories)
    origin = {
        "reference": "prepare_tinystories.py generate",
        "fingerprint": f"generated-{args.seed}-{args.num_stories}",
        "num_stories": args.num_stories,
        "seed": args.seed,
    }
    records = ((0, record_from_row(story)) for story in stories)
    manifest = write_corpus(records, args.folder, origin, splits_needed=SPLITS)
    describe_corpus(args.folder, manifest, f"train_vocab --corpus {args.corpus} --vocab_size 1024")
    return manifest


def download(args: DownloadArguments) -> list[Path]:
    """Fetch and unpack the archive; returns its shards."""
    from lm_trials.data.download import FOLDER, download_archive, local_archive, unpack_archive, unpacked_shards

    folder = Path(args.data_cache_dir)
    shards = unpacked_shards(folder / FOLDER)
    if not shards:
        shards = unpack_archive(local_archive(folder) or download_archive(folder), folder / FOLDER)
    show_facts(
        "TinyStories",
        {
            "shards": f"{len(shards)} in {folder / FOLDER}",
            "next": "python prepare_tinystories.py ingest --corpus tinystories",
        },
    )
    return shards


def ingest(args: IngestArguments) -> dict[str, Any]:
    """Read a source into a corpus; returns its manifest."""
    from lm_trials.data import corpora
    from lm_trials.data.sources import open_source

    source = open_source(
        args.source,
        text_column=args.text_column,
        text_separator=args.text_separator,
        dataset_config_name=args.dataset_config_name,
        dataset_split=args.dataset_split,
    )
    watch = lambda records: progress(records, f"reading {args.source}", "stories")  # noqa: E731
    manifest = corpora.ingest(source, args.folder, args.split_by, watch)
    describe_corpus(args.folder, manifest, f"pretokenize --corpus {args.corpus} --vocab_size N")
    return manifest


def train_vocab(args: TrainVocabArguments) -> Path:
    """Train the tokenizer; returns its folder."""
    from lm_trials.data.corpora import finished_folder, open_records
    from lm_trials.data.tokenizers import train_tokenizer

    if args.max_stories < 1:
        raise UsageError(f"--max_stories {args.max_stories} leaves nothing to read; give at least 1")
    folder = Path(args.data_cache_dir) / f"tok{args.vocab_size}"
    if folder.exists():
        raise UsageError(f"{folder} holds a tokenizer already; remove it to train it anew")
    records = open_records(args.folder, "train")
    records = records.select(range(min(args.max_stories, len(records))))
    batches = records.select_columns(["story"]).iter(1000)
    stories = (story for batch in batches for story in batch["story"])
    tokenizer = train_tokenizer(progress(stories, "reading stories", "stories", len(records)), args.vocab_size)
    with finished_folder(folder) as unfinished:
        tokenizer.save_pretrained(unfinished)
    facts = {"tokens": f"{len(tokenizer):,}", "folder": str(folder)}
    show_facts(
        "tokenizer",
        {
            **facts,
            "next": f"python prepare_tinystories.py pretokenize --corpus {args.corpus} --vocab_size {args.vocab_size}",
        },
    )
    return folder


def pretokenize(args: PretokenizeArguments) -> Path:
    """Make the token store; returns its folder."""
    from lm_trials.data.corpora import read_manifest
    from lm_trials.data.tokenizers import resolve_vocab
    from lm_trials.data.tokens import make_store, token_progress

    tokenizer = resolve_vocab(args.vocab_size, args.tokenizer_name, args.data_cache_dir)
    folder = make_store(
        args.folder,
        tokenizer,
        args.append_eos,
        watch=token_progress,
    )
    manifest = read_manifest(folder)
    facts = {
        split: f"{manifest['documents'][split]:,} stories, {n:,} tokens" for split, n in manifest["tokens"].items()
    }
    named = f"--vocab_size {args.vocab_size}" if args.vocab_size else f"--tokenizer_name {args.tokenizer_name}"
    show_facts(
        "tokens", {**facts, "folder": str(folder), "next": f"python train_gpt2.py --dataset_name {args.corpus} {named}"}
    )
    return folder


def describe(args: DescribeArguments) -> dict[str, float]:
    """Compare the held-out stories with the train split; returns the figures of `describe_variety`."""
    from itertools import chain, islice

    from lm_trials.data.corpora import open_records
    from lm_trials.data.variety import describe_variety

    if min(args.max_stories, args.max_held_out) < 1:
        raise UsageError(
            f"--max_stories {args.max_stories} --max_held_out {args.max_held_out}: both must be at least 1"
        )
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


def describe_corpus(folder: Path, manifest: dict[str, Any], following: str) -> None:
    """Say what a corpus holds, and the next command."""
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
    if manifest["split_by"] == "shard":
        facts["in two splits"] = f"{manifest['also_in_test']:,} stories of other shards are in the test shard too"
    facts["next"] = f"python prepare_tinystories.py {following}"
    show_facts(folder.name, facts)


COMMANDS = {
    "generate": (GenerateArguments, generate),
    "download": (DownloadArguments, download),
    "ingest": (IngestArguments, ingest),
    "train_vocab": (TrainVocabArguments, train_vocab),
    "pretokenize": (PretokenizeArguments, pretokenize),
    "describe": (DescribeArguments, describe),
}


@script
def main(argv: list[str] | None = None) -> Any:
    """Run one command; returns what it made."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(__doc__)
        raise SystemExit(0)
    name, *rest = argv
    if name not in COMMANDS:
        raise UsageError(f"{name} is no command; {did_you_mean(name, COMMANDS)}")
    arguments, command = COMMANDS[name]
    (args,) = parse_arguments(rest, (arguments,), arguments.__doc__ or "", prog=f"prepare_tinystories.py {name}")
    return command(args)


if __name__ == "__main__":
    main()
