"""Data order of a fine-tuning: which examples were in an update, told from `run.json` and the examples alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lm_trials.console import UsageError
from lm_trials.data.examples.tokens import ExampleStore
from lm_trials.data.order import document_order
from lm_trials.data.tokenizers import load_tokenizer
from lm_trials.training.order import Part, with_tokenizer


class TuningOrder:
    """The order of the examples of a run of `sft_lora.py`; the interface is that of `RunOrder`.

    Raises:
        UsageError: where the examples are not there, or not those that the run read.
    """

    def __init__(self, folder: Path, run: dict[str, Any], data_cache_dir: str | None = None) -> None:
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
        from lm_trials.training.examples import pack_examples

        lengths_N, _ = self.store.lengths(completion_only=False)
        return pack_examples(lengths_N, self.block_size, outcome["packing_strategy"]).to_pylist()

    def parts_of(self, step: int) -> list[Part]:
        """Return the examples of an update, in the order that the model read them.

        Raises:
            UsageError: for an update that the run does not have.
        """
        if not 1 <= step <= self.num_steps:
            raise UsageError(f"--step {step}: the run has updates 1 to {self.num_steps:,}")
        parts = []
        for place in range(self.blocks_per_step):
            pass_index, row = divmod((step - 1) * self.blocks_per_step + place, len(self.rows))
            for number in self.rows[int(self._order(pass_index)[row])]:
                ids = self.store.input_ids(number)
                name = self.store.record_id(number)
                parts.append(Part(pass_index, place, self.names[0], number, name, 0, len(ids) - 1, tuple(ids.tolist())))
        return parts

    def _order(self, pass_index: int) -> np.ndarray:
        return document_order(len(self.rows), self.data_seed, pass_index)

    def text_of(self, part: Part) -> str:
        """Return the text of an example."""
        return self.tokenizer.decode(part.ids)
