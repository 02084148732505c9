"""Data order: the records in each update of a run, with the metrics that order or
filter them, computed without running it again.

    lm-trials order runs/demo --step 137
    lm-trials order runs/demo --step 137 --text

The order follows from `run.json` and the data; changed data is refused.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_trials.console import UsageError, script, show_facts, show_table
from lm_trials.flags import option, parse_arguments
from lm_trials.training.order_flags import DataOrdering

if TYPE_CHECKING:  # transformers takes a second to import
    from transformers import PreTrainedTokenizerBase

    from lm_trials.data.datasets import DataSet
    from lm_trials.training.arrangements import Part, Table


@dataclass
class OrderArguments:
    """The run and the update."""

    run: str = option("runs/demo", help="Folder of the run.")
    step: int = option(1, least=1, help="Update, from 1, as in the logs.")
    text: bool = option(False, help="Show the text of each block too.")
    data_cache_dir: str | None = option(None, filled=True, help="Folder of the prepared data. Default: the run's.")


@dataclass(frozen=True)
class ReadDocument:
    """A document's tokens in one block of an update.

    Attributes:
        pass_index: pass over the data, from 0.
        block: position of the block in the update, from 0.
        corpus: name of the corpus, or of a mixture's part.
        document: row in that corpus.
        first: position of the first of these tokens in the document; token 0 is BOS.
        ids: these tokens.
        values: the document's metrics, as `DataOrder.metrics` names them.
    """

    pass_index: int
    block: int
    corpus: str
    document: int
    record_id: str
    first: int
    ids: tuple[int, ...]
    values: tuple[float, ...] = ()


class DataOrder(ABC):
    """The data order of a finished or running run.

    Attributes:
        names: of the parts of the data.
        members: the data sets that are these parts.
        metrics: the metrics that order or filter its records.
    """

    names: list[str]
    members: tuple[DataSet, ...]
    metrics: list[str]
    block_size: int

    def __init__(self, folder: Path, run: dict[str, Any]) -> None:
        self.folder, self.outcome, self.replicate = folder, run["outcome"], run["replicate"]
        self.started_in = Path(run["environment"].get("working_directory", "."))
        self.num_steps: int = self.outcome["max_steps"]
        self.blocks_per_step: int = self.outcome["total_train_batch_size"]

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The run's tokenizer; a fine-tuning has none in its folder before its first checkpoint."""
        from lm_trials.tokens.tokenizers import load_tokenizer

        return load_tokenizer(with_tokenizer(self.folder))

    def examples_folder(self, run: dict[str, Any], data_cache_dir: str | None) -> Path:
        """Return the folder of a fine-tuning's examples; a UsageError where it is gone."""
        data, given = self.outcome["data"], Path(data_cache_dir or run["logistics"]["data_cache_dir"])
        place = given if given.exists() else self.started_in / given
        examples = place / data["name"] / data["examples"]
        if not examples.is_dir():
            raise UsageError(f"{examples} does not exist; give --data_cache_dir, or prepare the data set again")
        return examples

    def parts_of(self, step: int) -> list[ReadDocument]:
        """Return the documents of an update, block by block, in the order of the training.

        Raises:
            UsageError: for an update that the run does not have.
        """
        if not 1 <= step <= self.num_steps:
            raise UsageError(f"--step {step}: the run has updates 1 to {self.num_steps:,}")
        blocks = enumerate(self.blocks_of(step))
        return [part for place, index in blocks for part in self._documents_of(index, place)]

    def blocks_of(self, step: int) -> range:
        """Return the blocks of the run that an update reads."""
        return range((step - 1) * self.blocks_per_step, step * self.blocks_per_step)

    @abstractmethod
    def _documents_of(self, index: int, place: int) -> list[ReadDocument]:
        """Return the documents of block `index` of the run, which is at `place` in its update."""

    @abstractmethod
    def with_metrics(self, tables: Sequence[Table]) -> dict[str, Part]:
        """Return by name the parts of the data, with the metrics of their documents from a table each."""

    def text_of(self, part: ReadDocument) -> str:
        """Return the text of a part."""
        return str(self.tokenizer.decode(list(part.ids)))


class RunOrder(DataOrder):
    """The order of the documents of a run of `lm-trials train`.

    Raises:
        UsageError: for a folder without a run, or changed data.
    """

    def __init__(self, folder: Path, data_cache_dir: str | None = None) -> None:
        from lm_trials.data.datasets import dataset_of
        from lm_trials.training.flags import DataArguments
        from lm_trials.training.stores import open_stores

        run = _run_of(folder)
        super().__init__(folder, run)
        known = {**run["logistics"], **self.outcome}
        given = {field.name: known[field.name] for field in fields(DataArguments) if field.name in known}
        given |= {"eval_datasets": None} | ({"data_cache_dir": data_cache_dir} if data_cache_dir else {})
        data_args = DataArguments(**given)
        for name in ("data_cache_dir", "dataset_name"):  # relative to where the run was started
            # Relative paths of run.json are relative to where training was started, not to the current folder.
            there = self.started_in / getattr(data_args, name)
            if not Path(getattr(data_args, name)).exists() and there.exists():
                setattr(data_args, name, str(there))
        stores = open_stores(data_args, self.tokenizer)
        # Fingerprints are compared because the order is computed and not stored: changed data would give a wrong
        # answer.
        if stores.described != self.outcome["data"]:
            names = [key for key, value in self.outcome["data"].items() if stores.described.get(key) != value]
            raise _changed(folder, ", ".join(names))
        self.names, self.members = [part.name for part in stores.parts], dataset_of(data_args).members
        self.metrics, self.parts = data_args.metrics, stores.metrics
        self.trained: list[Any] = [part.train for part in stores.parts]
        num_blocks = self.num_steps * self.blocks_per_step
        self.blocks = stores.blocks(data_args, num_blocks, self.replicate["data_seed"], self.blocks_per_step)
        self.block_size = self.blocks.block_size

    def with_metrics(self, tables: Sequence[Table]) -> dict[str, Part]:
        """Return the parts, each with the metrics of its documents."""
        from lm_trials.training.arrangements import part_of

        of_part = zip(self.names, self.trained, tables, strict=True)
        return {name: part_of(name, train.record_ids(), train.lengths_N, table) for name, train, table in of_part}

    def _documents_of(self, index: int, place: int) -> list[ReadDocument]:
        pass_index, pieces = self.blocks.pieces(index)
        parts = []
        for piece in pieces:
            name, ids = self.names[piece.part], tuple(piece.ids_T.tolist())
            values = tuple(float(self.parts[piece.part].values[metric][piece.document]) for metric in self.metrics)
            parts.append(
                ReadDocument(pass_index, place, name, piece.document, piece.record_id, piece.skipped, ids, values)
            )
        return parts


class TuningOrder(DataOrder):
    """The order of the examples of a run of `lm-trials tune`.

    Raises:
        UsageError: for missing or changed examples.
    """

    def __init__(self, folder: Path, data_cache_dir: str | None = None) -> None:
        from lm_trials.data.datasets import open_prepared
        from lm_trials.pairs.examples import ExampleStore
        from lm_trials.training.arrangements import arrange, example_part, open_table
        from lm_trials.training.tuning_examples import pack_examples, row_order, row_passes

        run = _run_of(folder)
        super().__init__(folder, run)
        data = self.outcome["data"]
        self.block_size, self.names = self.outcome["block_size"], [data["name"]]
        examples = self.examples_folder(run, data_cache_dir)
        self.store = ExampleStore(examples, "train")
        if self.store.counts != data["counts"]:
            raise _changed(folder, str(examples))
        self.members = (open_prepared(data["name"], examples.parent.parent, "dataset_name"),)
        flags = DataOrdering(**{field.name: self.outcome.get(field.name) for field in fields(DataOrdering)})
        self.metrics, phases = flags.metrics, None
        if flags.phases:
            table = open_table(flags, self.members[0])
            if table.described != data.get("metrics", {}):
                raise _changed(folder, "metrics")
            self.part = example_part(data["name"], self.store, table)
            phases = arrange(flags, [self.part], [1.0])
        self.rows = [[number] for number in range(len(self.store))]
        if self.outcome["packing"]:
            lengths_N, _ = self.store.lengths(completion_only=False)
            kept_K = phases[0].arrangements[0].kept_K if phases else None
            how = self.outcome["packing_strategy"]
            self.rows, phases = pack_examples(lengths_N, self.block_size, how, kept_K).to_pylist(), None
        self.passes = row_passes(len(self.rows), phases or (), self.blocks_per_step)
        count = self.num_steps * self.blocks_per_step
        self.order = row_order(len(self.rows), count, self.replicate["data_seed"], self.passes)

    def with_metrics(self, tables: Sequence[Table]) -> dict[str, Part]:
        """Return the one part, with the metrics of its examples."""
        from lm_trials.training.arrangements import example_part

        (name,), (table,) = self.names, tables
        return {name: example_part(name, self.store, table)}

    def _documents_of(self, index: int, place: int) -> list[ReadDocument]:
        pass_index, _ = self.passes.locate(index)
        parts = []
        for number in self.rows[int(self.order[index])]:
            ids, record_id = tuple(self.store.input_ids(number).tolist()), self.store.record_id(number)
            values = tuple(float(self.part.values[metric][number]) for metric in self.metrics)
            parts.append(ReadDocument(pass_index, place, self.names[0], number, record_id, 0, ids, values))
        return parts


class AlignmentOrder(DataOrder):
    """The order of the pairs or the prompts of a run of `lm-trials align`.

    A block is a pair, both of whose sides are shown, or a prompt whose completions an update may read.

    Raises:
        UsageError: for missing or changed examples.
    """

    def __init__(self, folder: Path, data_cache_dir: str | None = None) -> None:
        from lm_trials.data.datasets import open_prepared
        from lm_trials.pairs.examples import PromptStore
        from lm_trials.training.tuning_examples import row_order, row_passes

        run = _run_of(folder)
        super().__init__(folder, run)
        examples = self.examples_folder(run, data_cache_dir)
        self.store = PromptStore(examples, "train")
        if self.store.counts != self.outcome["data"]["counts"]:
            raise _changed(folder, str(examples))
        name = self.outcome["data"]["name"]
        self.block_size, self.metrics = self.outcome["block_size"], []
        self.members = (open_prepared(name, examples.parent.parent, "dataset_name"),)
        self.names = [name] if self.outcome["method"] == "grpo" else ["chosen", "rejected"]
        self.accumulated: int = run["logistics"]["gradient_accumulation_steps"]
        self.passes = row_passes(len(self.store))
        self.order = row_order(len(self.store), self.blocks_of(self.num_steps)[-1] + 1, self.replicate["data_seed"])
        self.blocks_per_step = len(self.blocks_of(1))

    def with_metrics(self, tables: Sequence[Table]) -> dict[str, Part]:
        """Return nothing: an alignment logs no metrics of its records."""
        return {}

    def blocks_of(self, step: int) -> range:
        """Return the pairs of an update, or the prompts whose completions it may read."""
        from lm_trials.training.alignment_examples import generation_prompts

        sampled = self.outcome["method"] == "grpo"
        return generation_prompts(step, self.accumulated, self.outcome) if sampled else super().blocks_of(step)

    def _documents_of(self, index: int, place: int) -> list[ReadDocument]:
        pass_index, _ = self.passes.locate(index)
        number = int(self.order[index])
        prompt, *sides = self.store.tokens(number)
        record_id = self.store.record_id(number)
        return [
            ReadDocument(pass_index, place, name, number, record_id, 0, tuple(prompt + side))
            for name, side in zip(self.names, sides or [[]], strict=True)
        ]


def _run_of(folder: Path) -> dict[str, Any]:
    from lm_trials.models.reference import read_run

    run = read_run(folder)
    if run is None:
        raise UsageError(f"{folder} is not a run (no run.json of this project); give the folder of a run")
    return run


def _changed(folder: Path, what: str) -> UsageError:
    return UsageError(f"{folder}: its data has changed since the training ({what}); restore the data it was trained on")


def with_tokenizer(folder: Path) -> Path:
    """Return the folder of a run's tokenizer: the run's, else its newest checkpoint's."""
    from lm_trials.models.reference import checkpoints

    places = [folder, *reversed(checkpoints(folder))]
    return next((place for place in places if (place / "tokenizer_config.json").is_file()), folder)


def open_order(folder: Path, data_cache_dir: str | None = None) -> DataOrder:
    """Return the data order of a pretraining, fine-tuning or alignment run.

    Raises:
        UsageError: for a folder without a run, or missing or changed data.
    """
    outcome = _run_of(folder)["outcome"]
    kind = AlignmentOrder if "method" in outcome else TuningOrder if "num_examples" in outcome else RunOrder
    return kind(folder, data_cache_dir)


@script
def main(argv: list[str] | None = None) -> list[ReadDocument]:
    """Show the records of an update; returns their parts."""
    (args,) = parse_arguments(argv, (OrderArguments,), __doc__ or "", prog="lm-trials order", first="run")
    order = open_order(Path(args.run), args.data_cache_dir)
    parts = order.parts_of(args.step)
    passes = " and ".join(map(str, sorted({part.pass_index + 1 for part in parts})))
    at_most = "" if isinstance(order, RunOrder) else " at most"
    show_facts(
        f"update {args.step:,} of {order.num_steps:,} of {args.run}",
        {
            "blocks": f"{order.blocks_per_step} of {order.block_size} tokens{at_most}, from pass {passes}",
            "documents": f"{len({(p.pass_index, p.corpus, p.document) for p in parts}):,}, complete or in part",
        },
    )
    columns = ["block, record", "part", "row", "tokens", *order.metrics, "text"]
    shown = [True, len(order.names) > 1, True, True, *(True for _ in order.metrics), args.text]
    rows = [
        [
            f"{p.block}  {p.record_id}",
            p.corpus,
            f"{p.document:,}",
            f"{p.first:,} to {p.first + len(p.ids) - 1:,}",
            *(f"{value:g}" for value in p.values),
            order.text_of(p) if args.text else "",
        ]
        for p in parts
    ]
    show_table("", list(compress(columns, shown)), [compress(row, shown) for row in rows])
    return parts


if __name__ == "__main__":
    main()
