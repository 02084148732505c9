"""Text batches: the texts of a data set that are measured together, and controls of known diversity.

Shape suffixes: T = tokens of a text.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lm_trials.console import UsageError
from lm_trials.data.datasets import DataSet, dataset_of, open_dataset
from lm_trials.probing.diversity.flags import DiversityArguments, label_of
from lm_trials.tokens.mixtures import mixed, parse_weights

if TYPE_CHECKING:  # transformers takes a second to import
    from transformers import PreTrainedTokenizerBase

Control = Literal["one token", "random tokens", "one batch again"]
CONTROLS: dict[Control, str] = {
    "one token": "one repeated token, rarely an end token: the paper's lower bound",
    "random tokens": "tokens drawn uniformly from the vocabulary: the paper's upper bound",
    "one batch again": "the first batch of the first data set with new random draws: only the noise of the draws",
}
# Texts of a stream's shuffle buffer, as in the paper's code; a prepared corpus is shuffled completely.
BUFFER_SIZE = 10_000


@dataclass(frozen=True)
class TextSet:
    """Batches of texts of one data set or mixture, drawn without replacement."""

    name: str
    batches: list[list[str]]
    is_mixture: bool = False


def open_text_sets(args: DiversityArguments) -> list[TextSet]:
    """Draw the batches of each data set, and with `--data_mix` of the mixture of several.

    Each batch of a mixture has texts of every part in the given shares, to within one text: the paper's *interleaved*
    union.  It shares texts with the batches of the parts, so no cross-diversity of a mixture and its parts is reported.

    Raises:
        UsageError: for a data set that is missing or has too few texts, or shares that do not fit.
    """
    names = args.dataset_name
    if len(names) == 1:
        dataset = dataset_of(args, names[0])
        streams = [(member.config or member.label, texts_of(member, args)) for member in dataset.members]
        return [_draw(dataset.label, streams, dataset.weights, args, is_mixture=len(streams) > 1)]
    how: dict[str, Any] = {
        "text_column": args.text_column,
        "text_separator": args.text_separator,
        "streaming": args.streaming,
    }
    datasets = [open_dataset(name, args.data_cache_dir, **how) for name in names]
    weights = parse_weights(args.data_mix, len(names)) if args.data_mix else None
    labels = [label_of(name) for name in names]
    if len(set(labels)) < len(labels):  # two files of one name in two folders
        labels = list(names)
    sets = [
        _draw(label, [(label, texts_of(dataset, args))], [1.0], args)
        for label, dataset in zip(labels, datasets, strict=True)
    ]
    if weights:
        streams = [(name, texts_of(dataset, args)) for name, dataset in zip(names, datasets, strict=True)]
        shares = " + ".join(f"{weight:g} {label}" for weight, label in zip(weights, labels, strict=True))
        sets.append(_draw(shares, streams, weights, args, is_mixture=True))
    return sets


def texts_of(dataset: DataSet, args: DiversityArguments) -> Iterator[str]:
    """Yield the texts of a data set, shuffled by the seed; default split of a prepared one: train."""
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
    every = mixed([stream for _, stream in streams], weights, lambda part, taken: ended.append(streams[part][0]))
    needed = args.num_batches * args.batch_size
    texts = list(itertools.islice(every, needed))
    if len(texts) < needed:
        because = f" (the part {ended[0]} has no more)" if is_mixture else ""
        raise UsageError(
            f"--num_batches {args.num_batches} of --batch_size {args.batch_size} need {needed:,} texts, but {name} has "
            f"{len(texts):,}{because}; lower one of them"
        )
    batches = [texts[start : start + args.batch_size] for start in range(0, len(texts), args.batch_size)]
    return TextSet(name, batches, is_mixture)


def token_batches(texts: TextSet, tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[list[np.ndarray]]:
    """Tokenize the batches with BOS before each text, truncated to `max_length` tokens including BOS.

    Raises:
        UsageError: for a tokenizer without BOS or EOS, or a text without tokens.
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
                f"{texts.name}: batch {number} has a text without tokens ({empty[0][:40]!r}); remove such texts"
            )
        batches.append(ids)
    return batches


def control_batches(
    control: Control, like: list[list[np.ndarray]], count: int, tokenizer: PreTrainedTokenizerBase, seed: int
) -> list[list[np.ndarray]]:
    """Make the batches of a control, with texts as long as those of `like`, the first data set.

    The bounds are those of arXiv 2306.13840, section 2.3.  For "one token", all tokens after BOS are the same ordinary
    token, or EOS with probability 1 / V; for "random tokens", all tokens have the same probability.
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
