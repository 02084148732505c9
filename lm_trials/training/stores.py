"""Stores of a run: what it trains on and what it is evaluated on, a corpus's tokens or a protocol's set."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from lm_trials.console import UsageError, note, progress
from lm_trials.data.corpora import is_corpus, read_manifest, resolve_corpus
from lm_trials.data.set_store import SetStore, open_set
from lm_trials.data.sets import is_set, set_folder
from lm_trials.data.tokens import TokenStore, make_store, token_progress
from lm_trials.training.arguments import DataArguments

Store = TokenStore | SetStore


@dataclass(frozen=True)
class RunStores:
    """The stores of a run.

    Attributes:
        train, validation: the splits of `--dataset_name`.
        named: further stores evaluated beside the validation split: of fine-tuning on sets, the training and test
            splits and the validation split of each of `--eval_datasets`.
        described: what identifies the training data in `run.json`.
        sets: names of the sets among them, whose validation records give prompts.
    """

    train: Store
    validation: Store
    named: dict[str, Store] = field(default_factory=dict)
    described: dict[str, Any] = field(default_factory=dict)
    sets: tuple[str, ...] = ()


def open_stores(data_args: DataArguments, tokenizer: PreTrainedTokenizerBase) -> RunStores:
    """Open, and where needed make, the tokens of `--dataset_name` and `--eval_datasets`.

    Raises:
        UsageError: for a name that is neither a set, a corpus nor a source; for a set of another tokenizer or an
            older corpus; for a split without stories.
    """
    place = Path(data_args.data_cache_dir)
    names = [name.strip() for name in (data_args.eval_datasets or "").split(",") if name.strip()]
    for name in names:
        if Path(name).name != name or name in ("train", "test"):
            raise UsageError(f"--eval_datasets {name}: give names of sets or corpora in {place}, not paths or splits")
    is_named_set = {name: is_set(place / name) for name in (data_args.dataset_name, *names)}
    for name in names:
        if not is_named_set[name] and not is_corpus(place / name):
            known = [path.name for path in place.iterdir() if is_set(path) or is_corpus(path)] if place.is_dir() else []
            raise UsageError(
                f"--eval_datasets {name} is not prepared in {place}; there are {', '.join(known) or 'none'}"
            )

    def opened(name: str, split: str) -> Store:
        if is_named_set[name]:
            return open_set(name, place, tokenizer, split, data_args.append_eos)
        return TokenStore.open(_corpus_store(name, data_args, tokenizer)[1], split)

    named: dict[str, Store] = {}
    if names:
        named = {split: opened(data_args.dataset_name, split) for split in ("train", "test")}
        named |= {name: opened(name, "validation") for name in names}
    return RunStores(
        opened(data_args.dataset_name, "train"),
        opened(data_args.dataset_name, "validation"),
        named,
        _describe(data_args, tokenizer),
        tuple(name for name, found in is_named_set.items() if found),
    )


def sets_to_write_for(stores: RunStores, data_args: DataArguments, positions: int | None) -> tuple[str, ...]:
    """Return the sets whose prompts leave the model room to write; says which do not, before anything starts."""
    if not data_args.generate_every or positions is None:
        return stores.sets
    chosen = []
    for name in stores.sets:
        store = stores.validation if name == data_args.dataset_name else stores.named[name]
        longest = max(len(store.prompt(n)) for n in range(min(len(store), data_args.num_generations)))
        if longest < positions:
            chosen.append(name)
        else:
            note(
                f"note: no stories are written for {name}: a prompt has {longest} tokens and the model {positions} "
                "positions"
            )
    return tuple(chosen)


def _corpus_store(name: str, data_args: DataArguments, tokenizer: PreTrainedTokenizerBase) -> tuple[Path, Path]:
    corpus = resolve_corpus(
        name,
        Path(data_args.data_cache_dir),
        watch=lambda records: progress(records, "reading stories", "stories"),
        text_column=data_args.text_column,
    )
    stories = read_manifest(corpus, "content", "stories")["stories"]
    if not stories["validation"]:
        total = sum(stories.values())
        raise UsageError(
            f"{name}: of {total:,} stories none falls into the validation split, which takes 1 per cent by hash; give "
            "some hundred stories or more"
        )
    return corpus, make_store(corpus, tokenizer, data_args.append_eos, watch=token_progress)


def _describe(data_args: DataArguments, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return what identifies the training data in `run.json`: content, protocol, tokenizer, counts."""
    place = Path(data_args.data_cache_dir)
    if is_set(place / data_args.dataset_name):
        manifest = read_manifest(set_folder(data_args.dataset_name, place, tokenizer, data_args.append_eos))
        return {
            "corpus": manifest["corpus"]["name"],
            "content": manifest["corpus"]["content"],
            "protocol": manifest["protocol"],
            "stories": manifest["documents"],
            **{key: manifest[key] for key in ("tokenizer_hash", "append_eos", "tokens")},
        }
    corpus, store = _corpus_store(data_args.dataset_name, data_args, tokenizer)
    manifest, tokens = read_manifest(corpus), read_manifest(store)
    return {
        "corpus": corpus.name,
        "content": manifest["content"],
        "split_by": manifest["split_by"],
        "stories": manifest["stories"],
        **{key: tokens[key] for key in ("tokenizer_hash", "append_eos", "tokens")},
    }
