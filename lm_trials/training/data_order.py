"""Data order: which records were in which update of a run, exactly, without running it again.

    lm-trials order runs/demo --step 137
    lm-trials order runs/demo --step 137 --text

The order follows from `run.json` (data, data seed, shuffle buffer, block size, batch) and the stores alone; what has
changed since is refused.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lm_trials.console import UsageError, script, show_facts, show_table
from lm_trials.flags import option, parse_arguments

if TYPE_CHECKING:  # transformers takes a second to import
    from transformers import PreTrainedTokenizerBase


@dataclass
class OrderArguments:
    """Which update of which run."""

    run: str = option("runs/demo", help="Folder of the run.")
    step: int = option(1, least=1, help="Update, counted from 1 as in the logs.")
    text: bool = option(False, help="Show the text of each block too.")
    data_cache_dir: str | None = option(None, help="Where the data lies now. Default: where it lay for the run.")


@dataclass(frozen=True)
class ReadDocument:
    """The part of a document that one block of an update holds.

    Attributes:
        pass_index: pass over the data, from 0.
        block: place of the block in the update, from 0.
        corpus: name of the corpus, of a mixture the part, that the document is of.
        document: its place there, as stored.
        first, last: its tokens within the document, from 0, both included; BOS is token 0.
        ids: these tokens.
    """

    pass_index: int
    block: int
    corpus: str
    document: int
    record_id: str
    first: int
    last: int
    ids: tuple[int, ...]


class DataOrder:
    """The data order of a finished or running run."""

    tokenizer: PreTrainedTokenizerBase
    names: list[str]
    num_steps: int
    blocks_per_step: int
    block_size: int

    def parts_of(self, step: int) -> list[ReadDocument]:
        """Return the documents of an update, block by block, in the order that the model read them.

        Raises:
            UsageError: for an update that the run does not have.
        """
        if not 1 <= step <= self.num_steps:
            raise UsageError(f"--step {step}: the run has updates 1 to {self.num_steps:,}")
        return self._documents_of(step)

    def _documents_of(self, step: int) -> list[ReadDocument]:
        raise NotImplementedError  # each kind of run packs its blocks differently

    def text_of(self, part: ReadDocument) -> str:
        """Return the text of a part, as far as whole tokens spell it."""
        return self.tokenizer.decode(part.ids)


class RunOrder(DataOrder):
    """The order of the documents of a run of `train_gpt2.py`.

    Raises:
        UsageError: for a folder that holds no run, or data that is not what the run read.
    """

    def __init__(self, folder: Path, data_cache_dir: str | None = None) -> None:
        from lm_trials.models.reference import read_run
        from lm_trials.tokens.tokenizers import load_tokenizer
        from lm_trials.training.flags import DataArguments
        from lm_trials.training.stores import open_stores

        run = read_run(folder) if folder.is_dir() else None
        if run is None:
            raise UsageError(f"{folder} holds no run (no run.json of this project); name a folder that has one")
        self.outcome, self.replicate = run["outcome"], run["replicate"]
        known = {**run["logistics"], **self.outcome}
        given = {field.name: known[field.name] for field in fields(DataArguments) if field.name in known}
        given |= {"eval_datasets": None} | ({"data_cache_dir": data_cache_dir} if data_cache_dir else {})
        self.tokenizer = load_tokenizer(with_tokenizer(folder))
        data_args = DataArguments(**given)
        started_in = Path(run["environment"].get("working_directory", "."))
        for name in ("data_cache_dir", "dataset_name"):  # as they were named where the run was started
            there = started_in / getattr(data_args, name)
            if not Path(getattr(data_args, name)).exists() and there.exists():
                setattr(data_args, name, str(there))
        stores = open_stores(data_args, self.tokenizer)
        if stores.described != self.outcome["data"]:
            names = [key for key, value in self.outcome["data"].items() if stores.described.get(key) != value]
            raise UsageError(f"the data of {folder} has changed since ({', '.join(names)}); the order cannot be told")
        self.names = [part.name for part in stores.parts]
        self.blocks_per_step = self.outcome["total_train_batch_size"]
        self.num_steps = self.outcome["max_steps"]
        num_blocks = self.num_steps * self.blocks_per_step
        self.blocks = stores.blocks(data_args, num_blocks, self.replicate["data_seed"])
        self.block_size = self.blocks.block_size

    def _documents_of(self, step: int) -> list[ReadDocument]:
        parts = []
        for number in range(self.blocks_per_step):
            index = (step - 1) * self.blocks_per_step + number
            pass_index, pieces = self.blocks.pieces(index)
            parts += [
                ReadDocument(
                    pass_index,
                    number,
                    self.names[piece.part],
                    piece.document,
                    piece.record_id,
                    piece.skipped,
                    piece.skipped + len(piece.ids_T) - 1,
                    tuple(piece.ids_T.tolist()),
                )
                for piece in pieces
            ]
        return parts


class TuningOrder(DataOrder):
    """The order of the examples of a run of `sft_lora.py`.

    Raises:
        UsageError: where the examples are not there, or not those that the run read.
    """

    def __init__(self, folder: Path, run: dict[str, Any], data_cache_dir: str | None = None) -> None:
        from lm_trials.pairs.examples import ExampleStore
        from lm_trials.tokens.tokenizers import load_tokenizer

        outcome = run["outcome"]
        self.data_seed = run["replicate"]["data_seed"]
        self.tokenizer = load_tokenizer(with_tokenizer(folder))
        self.num_steps, self.blocks_per_step = outcome["max_steps"], outcome["total_train_batch_size"]
        self.block_size, self.names = outcome["block_size"], [outcome["data"]["name"]]
        started_in = Path(run["environment"].get("working_directory", "."))
        given = Path(data_cache_dir or run["logistics"]["data_cache_dir"])
        place = given if given.exists() else started_in / given
        examples = place / outcome["data"]["name"] / outcome["data"]["examples"]
        if not examples.is_dir():
            raise UsageError(f"{examples} is not there; give --data_cache_dir, or prepare the data set again")
        self.store = ExampleStore(examples, "train")
        if self.store.counts != outcome["data"]["counts"]:
            raise UsageError(f"the data of {folder} has changed since ({examples}); the order cannot be told")
        self.rows = self._rows(outcome)

    def _rows(self, outcome: dict[str, Any]) -> list[list[int]]:
        """Return the examples of each row that a batch is made of: itself, or those that were packed into it."""
        if not outcome["packing"]:
            return [[number] for number in range(len(self.store))]
        from lm_trials.training.tuning_examples import pack_examples

        lengths_N, _ = self.store.lengths(completion_only=False)
        return pack_examples(lengths_N, self.block_size, outcome["packing_strategy"]).to_pylist()

    def _documents_of(self, step: int) -> list[ReadDocument]:
        parts = []
        for place in range(self.blocks_per_step):
            pass_index, row = divmod((step - 1) * self.blocks_per_step + place, len(self.rows))
            for number in self.rows[int(self._order(pass_index)[row])]:
                ids = self.store.input_ids(number)
                name = self.store.record_id(number)
                parts.append(
                    ReadDocument(pass_index, place, self.names[0], number, name, 0, len(ids) - 1, tuple(ids.tolist()))
                )
        return parts

    def _order(self, pass_index: int) -> np.ndarray:
        from lm_trials.tokens.order import document_order

        return document_order(len(self.rows), self.data_seed, pass_index)


def with_tokenizer(folder: Path) -> Path:
    """Return the folder of a run that holds its tokenizer: its own, else its newest checkpoint."""
    from lm_trials.models.reference import checkpoints

    places = [folder, *reversed(checkpoints(folder))]
    return next((place for place in places if (place / "tokenizer_config.json").is_file()), folder)


def open_order(folder: Path, data_cache_dir: str | None = None) -> DataOrder:
    """Return the data order of a run of train_gpt2.py or of sft_lora.py.

    Raises:
        UsageError: as `RunOrder`.
    """
    from lm_trials.models.reference import read_run

    run = read_run(folder) if folder.is_dir() else None
    if run is not None and "num_examples" in run["outcome"]:
        return TuningOrder(folder, run, data_cache_dir)
    return RunOrder(folder, data_cache_dir)


def order_arguments(argv: list[str]) -> OrderArguments:
    """Parse the flags; the run's folder may come first without its flag."""
    if argv and not argv[0].startswith("-"):
        argv = ["--run", *argv]
    (args,) = parse_arguments(argv, (OrderArguments,), __doc__ or "", prog="lm-trials order")
    return args


@script
def main(argv: list[str] | None = None) -> list[ReadDocument]:
    """Say which records an update read; returns their parts."""
    args = order_arguments(list(sys.argv[1:] if argv is None else argv))
    order = open_order(Path(args.run), args.data_cache_dir)
    parts = order.parts_of(args.step)
    passes = sorted({part.pass_index + 1 for part in parts})
    at_most = "" if isinstance(order, RunOrder) else " at most"
    show_facts(
        f"update {args.step:,} of {order.num_steps:,} of {args.run}",
        {
            "blocks": f"{order.blocks_per_step} of {order.block_size} tokens{at_most}, from pass "
            + " and ".join(map(str, passes)),
            "documents": f"{len({(p.pass_index, p.corpus, p.document) for p in parts}):,}, whole or in part",
        },
    )
    several = len(order.names) > 1
    rows = [
        [
            f"{p.block}  {p.record_id}",
            *([p.corpus] if several else []),
            f"{p.document:,}",
            f"{p.first:,} to {p.last:,}",
            *([order.text_of(p)] if args.text else []),
        ]
        for p in parts
    ]
    columns = ["block, record", *(["part"] if several else []), "row", "tokens", *(["text"] if args.text else [])]
    show_table("", columns, rows)
    return parts


if __name__ == "__main__":
    main()
