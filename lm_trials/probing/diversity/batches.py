"""Text batches: which texts of a data set are measured together, and the controls with a known place on the scale.

Shape suffixes: T = tokens of a text.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from lm_trials.console import UsageError
from lm_trials.data.datasets import DataSet, dataset_of, open_dataset
from lm_trials.probing.diversity.flags import DiversityArguments
from lm_trials.tokens.mixtures import mixed, parse_weights

if TYPE_CHECKING:  # transformers takes a second to import
    from transformers import PreTrainedTokenizerBase

Control = Literal["one token", "random tokens", "one batch again"]
CONTROLS: dict[Control, str] = {
    "one token": "a token again and again, now and then an end mark: the paper's lower bound",
    "random tokens": "tokens drawn uniformly from the vocabulary: the paper's upper bound",
    "one batch again": "the first batch of the first data set with new draws: nothing but the drawing's noise",
}
# As in the paper's code.  A stream's texts come out of it shuffled; a prepared corpus is shuffled whole.
BUFFER_SIZE = 10_000


@dataclass(frozen=True)
class TextSet:
    """Batches of texts of one data set or mixture; no text is drawn twice."""

    name: str
    batches: list[list[str]]
    is_mixture: bool = False


def open_text_sets(args: DiversityArguments) -> list[TextSet]:
    """Draw the batches of each data set, and of their mixture where several come with `--data_mix`.

    A mixture's batches hold texts of every part, in the shares asked for to within one text: the paper's
    *interleaved* union.  The batches of the parts themselves hold the same texts, so distances from a mixture to its
    parts are no cross-diversity, and none is given.

    Raises:
        UsageError: for a data set that is not there or has too few texts, or shares that do not fit.
    """
    names = args.dataset_name
    if len(names) == 1:
        dataset = dataset_of(args, names[0])
        streams = [(member.config or member.label, texts_of(member, args)) for member in dataset.members]
        return [_draw(dataset.label, streams, dataset.weights, args, is_mixture=len(streams) > 1)]
    datasets = {
        name: open_dataset(
            name,
            args.data_cache_dir,
            text_column=args.text_column,
            text_separator=args.text_separator,
            streaming=args.streaming,
        )
        for name in names
    }
    weights = parse_weights(args.data_mix, len(names)) if args.data_mix else None
    labels = [label_of(name) for name in names]
    if len(set(labels)) < len(labels):  # two files of one name in two folders
        labels = list(names)
    sets = [
        _draw(label, [(label, texts_of(datasets[name], args))], [1.0], args)
        for name, label in zip(names, labels, strict=True)
    ]
    if weights:
        streams = [(name, texts_of(datasets[name], args)) for name in names]
        shares = " + ".join(f"{weight:g} {label}" for weight, label in zip(weights, labels, strict=True))
        sets.append(_draw(shares, streams, weights, args, is_mixture=True))
    return sets


def label_of(name: str) -> str:
    """Return what a data set is called in tables: its file or folder name, or the Hub name after the owner.

    >>> label_of("texts/pubmed.jsonl")
    'pubmed'
    """
    return Path(name).name.split(".")[0] or name


def texts_of(dataset: DataSet, args: DiversityArguments) -> Iterator[str]:
    """Yield the texts of a data set in the order of the seed; of a prepared one by default those of its train split."""
    split = args.dataset_split or ("train" if dataset.prepared else None)
    return dataset.shuffled_stories(split, args.seed, BUFFER_SIZE)


def _draw(
    name: str,
    streams: Sequence[tuple[str, Iterator[str]]],
    weights: Sequence[float],
    args: DiversityArguments,
    is_mixture: bool = False,
) -> TextSet:
    ended: list[str] = []
    texts = list(
        itertools.islice(
            mixed([stream for _, stream in streams], weights, lambda part, taken: ended.append(streams[part][0])),
            args.texts_needed,
        )
    )
    if len(texts) < args.texts_needed:
        because = f" (the part {ended[0]} has no more)" if is_mixture else ""
        raise UsageError(
            f"{name} gives {len(texts):,} texts{because}, and --num_batches {args.num_batches} of --batch_size "
            f"{args.batch_size} need {args.texts_needed:,}; lower one of them"
        )
    batches = [texts[start : start + args.batch_size] for start in range(0, len(texts), args.batch_size)]
    return TextSet(name, batches, is_mixture)


def token_batches(texts: TextSet, tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[list[np.ndarray]]:
    """Tokenise the batches, a beginning mark before each text, cut off at `max_length` tokens with it.

    Raises:
        UsageError: for a tokenizer without a mark, or a text of which it leaves nothing to predict.
    """
    from lm_trials.tokens.stores import document_marks
    from lm_trials.tokens.tokenizers import batch_encoder

    opening, _ = document_marks(tokenizer, append_eos=False)
    encode = batch_encoder(tokenizer)
    batches = []
    for number, batch in enumerate(texts.batches):
        ids = [np.array((opening + row)[:max_length], dtype=np.int64) for row in encode(batch)]
        if empty := [text for text, row in zip(batch, ids, strict=True) if len(row) < 2]:
            raise UsageError(
                f"batch {number} of {texts.name} has a text without tokens ({empty[0][:40]!r}); filter such texts out"
            )
        batches.append(ids)
    return batches


def control_batches(
    control: Control, like: list[list[np.ndarray]], count: int, tokenizer: PreTrainedTokenizerBase, seed: int
) -> list[list[np.ndarray]]:
    """Make the batches of a control, texts as long as those of `like`, the first data set's.

    The bounds are those of arXiv 2306.13840, section 2.3: of "one token" every token but the beginning mark is one and
    the same ordinary token, or with probability 1 / V the end mark; of "random tokens" every token has the same
    chance.
    """
    if control == "one batch again":
        return [like[0]] * count
    digest = hashlib.blake2b(f"{seed}:{control}".encode(), digest_size=16).digest()
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "big")))
    special = set(tokenizer.all_special_ids)
    every_V = np.array(sorted(set(tokenizer.get_vocab().values())))
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else int(like[0][0][0])
    token = int(generator.choice([number for number in every_V.tolist() if number not in special]))
    batches = []
    for number in range(count):
        batch = []
        for text in like[number % len(like)]:
            if control == "one token":
                is_end_T = generator.random(len(text) - 1) < 1 / len(every_V)
                drawn_T = np.where(is_end_T, end, token)
            else:
                drawn_T = generator.choice(every_V, size=len(text) - 1)
            batch.append(np.concatenate([text[:1], drawn_T]))
        batches.append(batch)
    return batches
