"""The default tokenizer of a training: trained once on its corpus and kept beside it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from lm_trials.console import UsageError, note, progress
from lm_trials.data.datasets import DataSet, ProtocolSet, RawSource
from lm_trials.files import MadeMeanwhileError, finished_folder
from lm_trials.stories.corpora import open_records
from lm_trials.tokens.tokenizers import train_tokenizer

# Enough for 8,192 entries: the published story tokenizers were trained on 10 of the 50 shards, about a million
# stories.
MAX_STORIES = 1_000_000
SMALLEST, LARGEST = 512, 8192
CHARACTERS_PER_TOKEN = 2000


def default_tokenizer(dataset: DataSet) -> Path:
    """Return the folder of the tokenizer of a data set, of a mixture that of all its parts, trained if it is missing.

    Raises:
        UsageError: for a protocol set, which has the tokens of one tokenizer; for a data set that is not a corpus and
            cannot become one, or is streamed from the Hub and should not be downloaded.
    """
    for member in dataset.members:
        if isinstance(member, RawSource) and member.source.kind == "hub" and member.streaming == "True":
            raise UsageError(
                f"--tokenizer_name is missing and {member.name} is streamed from the Hub; give --tokenizer_name or "
                "--vocab_size, or --streaming CacheStream to download it and train one"
            )
        if isinstance(member, ProtocolSet):
            raise UsageError(
                f"--vocab_size is missing; give the --vocab_size or --tokenizer_name with which {member.name} was made"
            )
    corpora = [member.corpus() for member in dataset.members]
    folder = corpora[0] / "-".join(["tokenizer", *(corpus.name for corpus in corpora[1:])])
    if not folder.exists():
        with suppress(MadeMeanwhileError), finished_folder(folder, "give --tokenizer_name") as unfinished:
            records = [open_records(corpus, "train").select_columns(["story"]) for corpus in corpora]
            stories = [rows.select(range(min(MAX_STORIES, len(rows)))) for rows in records]
            vocab_size = default_vocab_size(sum(map(_characters, stories)))
            note(f"no tokenizer is named: training one of {vocab_size:,} tokens on {dataset.label}, kept in {folder}")
            texts = (story for rows in stories for batch in rows.iter(1000) for story in batch["story"])
            shown = progress(texts, "reading stories", "stories", sum(map(len, stories)))
            train_tokenizer(shown, vocab_size).save_pretrained(unfinished)
    return folder


def default_vocab_size(characters: int) -> int:
    """Return a power of two between 512 and 8,192: one token for each 2,000 characters of the corpus, rounded down.

    At that rate a token occurs some 500 times on average, so that its embedding can be learned; the published story
    models end at 8,192.

    >>> [default_vocab_size(characters) for characters in (10_000, 2_800_000, 2_000_000_000)]
    [512, 1024, 8192]
    """
    return min(LARGEST, max(SMALLEST, 1 << ((characters // CHARACTERS_PER_TOKEN) or 1).bit_length() - 1))


def _characters(rows: Any) -> int:
    """Estimate the characters of all stories by the first thousand."""
    first = rows[:1000]["story"]
    return sum(map(len, first)) * len(rows) // max(len(first), 1)
