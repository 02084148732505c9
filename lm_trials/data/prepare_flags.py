"""Arguments of `prepare_tinystories.py`'s commands; nothing heavy is imported, so that `--help` answers at once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lm_trials.console import UsageError
from lm_trials.flags import option
from lm_trials.protocols.transforms import transforms_help
from lm_trials.shared_flags import DataFolder

if TYPE_CHECKING:
    from lm_trials.pairs.instruct import Recipe
    from lm_trials.protocols.protocols import Protocol


@dataclass
class CorpusArguments(DataFolder):
    """Where the corpus lies."""

    corpus: str = option("generated", help="Name of the corpus, a folder in --data_cache_dir.")

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

    num_stories: int = option(20_000, least=100, why="each split needs a story", help="Stories to write.")
    seed: int = option(0, least=0, help="Seed of the stories; story i is the same in a corpus of any size.")


@dataclass
class DownloadArguments(DataFolder):
    """Fetch the TinyStories archive (1.6 GB) from the Hub, check it and unpack its 50 shards."""


@dataclass
class IngestArguments(CorpusArguments):
    """Read a source into a corpus: records, splits, counts."""

    source: str = option(
        "data/TinyStories_all_data", help="A file, a folder of shards, a saved data set or a Hub name."
    )
    split_by: Literal["hash", "shard"] = option(
        "hash", help="hash: the source's own splits, else 98/1/1 by content. shard: shard 0 is the test split."
    )
    text_column: str | None = option(None, help="Column that holds the story. Default: story, else text.")
    text_separator: str = option("<|endoftext|>", help="What stands between two stories of a text file.")
    dataset_config_name: str | None = option(None, help="Configuration of a Hub data set, or part of a folder.")
    dataset_split: str | None = option(None, help="Split of a Hub or saved data set to read, then split by hash.")
    validation_split_percentage: float | None = option(
        None,
        above=0,
        most=50,
        help="Validation stories, by hash, of a source without a validation split. Without any splits: 1.",
    )


@dataclass
class TrainVocabArguments(CorpusArguments):
    """Train a byte-fallback BPE tokenizer on the train split, Llama-style, into data/tok<N>."""

    vocab_size: int = option(8192, help="Tokens of the vocabulary, with 3 special ones and 256 bytes.")
    max_stories: int = option(1_000_000, least=1, help="Stories read, from the start; the seeds read 10 of 50 shards.")


@dataclass
class TokenizerArguments(CorpusArguments):
    """Which tokenizer."""

    vocab_size: int = option(0, least=0, help="The tokenizer trained with this size; 0: --tokenizer_name, Llama 2's.")
    tokenizer_name: str | None = option(None, help="Tokenizer: a folder, a SentencePiece .model file or a Hub name.")
    append_eos: bool = option(False, help="Close each story with EOS too.")


@dataclass
class SetArguments(TokenizerArguments):
    """How the texts of a set are written, and whether anything is written at all."""

    feature_style: Literal["canonical", "capitalized"] = option(
        "canonical", help="capitalized: as the published models saw features, BadEnding as Badending."
    )
    refusal_text: str | None = option(None, help="Text of a refusal; {feature} stands for the feature's name.")
    transform: list[str] = option(
        [], help=f"Transforms applied to each record, in this order, after the other changes. {transforms_help()}"
    )
    protocol_seed: int = option(0, least=0, help="Seed of what is drawn per record: line order, sentence, chances.")
    dry_run: bool = option(False, help="Count and show, and write nothing.")

    def written(self) -> dict[str, Any]:
        """Return the arguments of `parse_protocol` that these flags are, but for `transform`."""
        return {"refusal_text": self.refusal_text, "feature_style": self.feature_style, "seed": self.protocol_seed}

    def check_names(self, names: Iterable[str]) -> None:
        """Refuse a set's name that would lie elsewhere, or in the corpus's place.

        Raises:
            UsageError: naming it.
        """
        for name in names:
            if Path(name).name != name or name.startswith(".") or name in (self.corpus, "train", "test") or "," in name:
                raise UsageError(f"--dataset_name {name!r} is no name for a set; give a plain one that no corpus has")


@dataclass
class PretokenizeArguments(SetArguments):
    """Make a corpus's tokens once, BOS before each story; with a protocol's flags, the set of that protocol."""

    dataset_name: str | None = option(None, help="Name of the set. Default: one that spells the protocol out.")
    filtering: str | None = option(
        None, help="Keep stories for which all hold: features=Twist,words!=dog,length=200 (more than 200 characters)."
    )
    mix_match: str | None = option(None, help="Put one label in another's place: features:Foreshadowing=Twist.")
    adversarial_training: str | None = option(None, help="Add a label with a probability: features=Twist:0.5.")
    refusal: str | None = option(None, help="Add a label and refuse the story, with a probability: features=Twist:1.0.")
    instruction_subset: str | None = option(
        None, help="Instruction lines shown, of Words,Features,Summary,Sentence. Default: all, in a set."
    )

    def protocol(self) -> Protocol | None:
        """Read the protocol that the flags describe, if any of them is given."""
        from lm_trials.protocols.protocols import parse_protocol

        changes = (self.filtering, self.mix_match, self.adversarial_training, self.refusal, self.transform)
        if self.refusal_text is not None and not self.refusal:
            raise UsageError(f"--refusal_text {self.refusal_text!r} without --refusal says nothing; remove it")
        named = self.dataset_name is not None or self.feature_style != "canonical"
        if not any(changes) and not self.instruction_subset and not named:
            return None
        return parse_protocol(*changes, instruction_subset=self.instruction_subset, **self.written())


@dataclass
class ProtocolSetArguments(SetArguments):
    """Make the ten sets of the deletion and recovery study for a pair of features, and three it trains on too."""

    feature_delete: str = option("Twist", help="Feature that fine-tuning shall remove.")
    feature_irrelevant: str = option("Foreshadowing", help="Feature that stands for something else.")


@dataclass
class InstructArguments(CorpusArguments):
    """Make prompts and the stories that answer them of a corpus, for sft_lora.py; as conversations, if asked."""

    style: Literal["prompt", "summary"] = option(
        "prompt", help='prompt: the record\'s instruction, then "Possible story:". summary: "Write " and the summary.'
    )
    dataset_name: str | None = option(None, help="Name of the data set. Default: <corpus>-instruct-<style>.")
    conversational: bool = option(
        False,
        not_with="overlong",
        why="later turns are about the whole story",
        help="Write them as messages of user and assistant, for chat models.",
    )
    turns: int = option(
        1,
        least=1,
        most=3,
        needs="conversational",
        help="Turns of a conversation, 1 to 3: the story, its summary, its words.",
    )
    seed: int = option(0, least=0, help="Seed of how the questions of later turns are worded.")
    vocab_size: int = option(
        0,
        least=0,
        not_with="tokenizer_name",
        help="Count tokens with the tokenizer trained with this size; 0: --tokenizer_name.",
    )
    tokenizer_name: str | None = option(
        None,
        help="Count tokens with this tokenizer: a folder, a .model file or a Hub name. Default: none, count nothing.",
    )
    max_length: int | None = option(
        None,
        least=1,
        needs=("vocab_size", "tokenizer_name"),
        why="to count tokens",
        help="Tokens of an example at most, [EOS] prompt [BOS] story [EOS]. Default: 350, the published length.",
    )
    overlong: Literal["drop", "cut"] = option(
        "drop",
        needs=("vocab_size", "tokenizer_name"),
        help="What happens to longer ones: left out, or the story cut, after which no EOS is trained.",
    )
    dry_run: bool = option(False, help="Count and show, and write nothing.")

    @property
    def set_folder(self) -> Path:
        """The folder of the data set.

        Raises:
            UsageError: for a name that would lie elsewhere.
        """
        name = f"{self.corpus}-instruct-{self.style}" if self.dataset_name is None else self.dataset_name
        if not name or Path(name).name != name or name.startswith("."):
            raise UsageError(f"--dataset_name {name!r} is no name for a data set; give a plain one such as tellers")
        if name == self.corpus:
            raise UsageError(f"--dataset_name {name} is the corpus itself; give another name")
        return Path(self.data_cache_dir) / name

    def recipe(self) -> Recipe:
        """Return what is asked for, with the tokenizer loaded."""
        from lm_trials.pairs.instruct import MAX_LENGTH, Recipe

        tokenizer = None
        if self.vocab_size or self.tokenizer_name:
            from lm_trials.tokens.tokenizers import resolve_vocab

            tokenizer = resolve_vocab(self.vocab_size or None, self.tokenizer_name, self.data_cache_dir)
        max_length = MAX_LENGTH if self.max_length is None else self.max_length
        return Recipe(self.style, self.conversational, self.turns, self.seed, tokenizer, max_length, self.overlong)


@dataclass
class DescribeArguments(CorpusArguments):
    """Say what a protocol did to a set (`describe NAME`), or how varied a corpus is (`describe --corpus NAME`)."""

    dataset_name: str | None = option(None, help="Name of a set.")
    json: str | None = option(None, help="File that the same goes to as JSON.")
    max_stories: int = option(
        20_000, least=1, help="Train stories compared, from the start; 20,000 take about 6 seconds."
    )
    max_held_out: int = option(
        1_000, least=1, help="Stories of the validation and test splits that are compared with them."
    )
