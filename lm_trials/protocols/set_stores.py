"""Set stores: the documents of a protocol's set, joined as they are read, behind a token store's interface."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from lm_trials.console import UsageError, did_you_mean
from lm_trials.protocols.composition import Pieces
from lm_trials.protocols.instruction_stores import BODIES, InstructionStore, instruction_folder
from lm_trials.protocols.set_texts import resolve_set
from lm_trials.protocols.sets import set_folder
from lm_trials.protocols.whole_sets import WholeSetStore
from lm_trials.stories.arrow_files import load_splits
from lm_trials.stories.corpora import MANIFEST, read_manifest
from lm_trials.tokens.stores import TokenStore, store_folder

if TYPE_CHECKING:  # transformers takes a second to import
    from transformers import PreTrainedTokenizerBase


class SetStore:
    """The texts of one split of a set as tokens: BOS, instruction lines, "Story:", story (or refusal).

    Attributes:
        lengths_N: tokens of each document, with BOS and EOS.
        num_bytes_N: UTF-8 bytes of each text.
        rows_N: row of each document in the corpus.
        refused_N: place of the refusal that replaces the story, or -1.
    """

    def __init__(self, folder: Path, split: str, pieces: Pieces, stories: TokenStore, lines: InstructionStore) -> None:
        self.manifest = read_manifest(folder)
        table = load_splits(folder)[split].data.table
        self.pieces, self.stories, self.lines = pieces, stories, lines
        self.rows_N = table.column("row").to_numpy()
        self.refused_N = table.column("refused").to_numpy()
        self.lengths_N = table.column("length").to_numpy()
        self.num_bytes_N = table.column("num_bytes").to_numpy()
        self.num_tokens = int(self.lengths_N.sum(dtype=np.int64))
        self._features_N = table.column("features").to_numpy()
        self._feature_lists = [tuple(labels) for labels in self.manifest["features"]]
        self._words = table.column("words") if pieces.protocol.changes("words") else None

    def __len__(self) -> int:
        return len(self.lengths_N)

    def record_id(self, document: int) -> str:
        """Return the id of a document's record."""
        return self.stories.record_id(int(self.rows_N[document]))

    def record_ids(self) -> pa.ChunkedArray:
        """Return the ids of all documents' records."""
        return self.stories.record_ids().take(self.rows_N)

    def features(self, document: int) -> tuple[str, ...]:
        """Return the features of a document's instruction."""
        return self._feature_lists[self._features_N[document]]

    def prompt(self, document: int) -> np.ndarray:
        """Return the ids up to and with "Story:"."""
        pieces, row = self.pieces, int(self.rows_N[document])
        bodies = self.lines.bodies(row)
        if self._words is not None:
            changed = self._words[document].values
            if changed is None:
                bodies.pop("Words", None)
            elif len(changed):
                bodies["Words"] = changed.to_numpy()
        shown = pieces.shown(int(self.lines.orders_N[row]), [line in bodies for line in BODIES])
        parts: list = [pieces.bos]
        labels = pieces.first
        for line in shown:
            body = pieces.feature_ids(self.features(document)) if line == "Features" else bodies[line]
            parts += [labels[line], body]
            labels = pieces.next
        return np.concatenate([*parts, labels["Story"]]).astype(np.int64)

    def continuation(self, document: int) -> np.ndarray:
        """Return the ids after the prompt: the story, or the refusal that replaces it."""
        refused = int(self.refused_N[document])
        if refused >= 0:
            return np.array([*self.pieces.refusals[refused], *self.pieces.eos], dtype=np.int64)
        return self.stories.tokens(int(self.rows_N[document]))[len(self.pieces.bos) :].astype(np.int64)

    def tokens(self, document: int) -> np.ndarray:
        """Return the (length,) ids of one document."""
        return np.concatenate([self.prompt(document), self.continuation(document)])


def open_set(
    name: str, data_cache_dir: Path, tokenizer: PreTrainedTokenizerBase, split: str, append_eos: bool = False
) -> SetStore | WholeSetStore:
    """Open one split of a prepared set.

    Raises:
        UsageError: for a name that is not a set, a set of another tokenizer or of a changed corpus, or an empty split.
    """
    folder, corpus, protocol = resolve_set(name, data_cache_dir)
    tokens = set_folder(name, data_cache_dir, tokenizer, append_eos)
    if not (tokens / MANIFEST).is_file():
        there = ", ".join(path.name for path in sorted(folder.glob("tokens-*"))) or "none"
        other = set_folder(name, data_cache_dir, tokenizer, not append_eos)
        if (other / MANIFEST).is_file():
            raise UsageError(
                f"{name} was prepared {'without' if append_eos else 'with'} EOS after each story and is needed "
                f"otherwise; prepare it too with lm-trials prepare pretokenize --append_eos {append_eos}"
            )
        raise UsageError(
            f"{name} has no {tokens.name}, the tokens of this tokenizer (it has {there}); give the tokenizer that it "
            "was prepared with, or prepare it with this one: lm-trials prepare pretokenize"
        )
    manifest = read_manifest(tokens)
    if not manifest["documents"].get(split):
        raise UsageError(
            f"the {split} split of {name} has no story; prepare more stories, or name another split: "
            f"{did_you_mean(split, manifest['documents'])}"
        )
    if manifest.get("whole"):
        return WholeSetStore(load_splits(tokens)[split], manifest)
    stories = TokenStore.open(store_folder(corpus, tokenizer, append_eos), split)
    line_folder = instruction_folder(corpus, tokenizer, protocol.seed)
    lines = InstructionStore(load_splits(line_folder)[split], read_manifest(line_folder))
    return SetStore(tokens, split, Pieces(tokenizer, protocol, append_eos), stories, lines)
