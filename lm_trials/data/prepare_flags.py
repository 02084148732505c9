"""Flags of `lm-trials prepare`'s commands; without heavy imports, so that `--help` is fast."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lm_trials.console import UsageError
from lm_trials.flags import SEED, option
from lm_trials.protocols.transforms import transforms_help
from lm_trials.shared_flags import DataFolder, Device

if TYPE_CHECKING:
    from lm_trials.pairs.instruct import Recipe
    from lm_trials.protocols.protocols import Protocol


@dataclass
class CorpusArguments(DataFolder):
    """The corpus."""

    corpus: str = option("generated", folder_name=True, help="Name of the corpus, a folder in --data_cache_dir.")

    @property
    def folder(self) -> Path:
        """The corpus folder."""
        return Path(self.data_cache_dir) / self.corpus


@dataclass
class GenerateArguments(CorpusArguments):
    """Generate stories from a grammar, with their words and features."""

    num_stories: int = option(20_000, least=100, why="each split needs a story", help="Stories to generate.")
    seed: int = option(0, **SEED, help="Seed of the stories; story i is the same in a corpus of any size.")


@dataclass
class DownloadArguments(DataFolder):
    """Download the TinyStories archive (1.6 GB) and unpack its 50 shards."""


@dataclass
class IngestArguments(CorpusArguments):
    """Read a source into a corpus: records, splits, counts."""

    source: str = option(
        "data/TinyStories_all_data", help="A file, a folder of shards, a saved data set or a Hub name."
    )
    split_by: Literal["hash", "shard"] = option(
        "hash", help="hash: the source's own splits, else 98/1/1 by content. shard: shard 0 is the test split."
    )
    text_column: str | None = option(None, help="Column with the story. Default: story, else text.")
    text_separator: str = option("<|endoftext|>", help="Separator between the stories of a text file.")
    dataset_config_name: str | None = option(None, help="Configuration of a Hub data set, or part of a folder.")
    dataset_split: str | None = option(None, help="Split of a Hub or saved data set to read; it is split by hash.")
    validation_split_percentage: float | None = option(
        None,
        above=0,
        most=50,
        help="Percentage of validation stories, by hash, if the source has none; 1 without any splits.",
    )


@dataclass
class DeriveArguments(CorpusArguments):
    """Make a corpus from another: filtered, transformed, cut to documents of equal length, or its words drawn anew."""

    dataset_name: str = option("", required="NAME", folder_name=True, help="Name of the new corpus.")
    filtering: str | None = option(None, help="Keep only stories that meet all of: features=Twist,words!=dog.")
    transform: list[str] = option([], help=f"Transforms of each story, applied in this order. {transforms_help()}")
    words_per_story: int | None = option(
        None, least=1, help="Cut each story into documents of this many words; a shorter rest is dropped."
    )
    resample_words: bool = option(
        False, help="Replace each word by one drawn from the word frequencies of the train split."
    )
    seed: int = option(0, **SEED, help="Seed of the order of the stories, and of what is drawn for each.")


@dataclass
class TrainVocabArguments(CorpusArguments):
    """Train a Llama-style byte-fallback BPE tokenizer on the train split."""

    corpus: str = option("generated", help="Name of the corpus. Of several, a+b, equally many characters are read.")
    # The backend reserves memory for all of them: 2^53 end the process.
    vocab_size: int = option(
        8192, least=1, most=2**20, help="Size of the vocabulary, with 3 special tokens and 256 bytes."
    )
    # The published tokenizers were trained on 10 of the 50 shards, about this many stories.
    max_stories: int = option(1_000_000, least=1, help="Stories read, from the start.")


@dataclass
class TokenizerArguments(CorpusArguments):
    """The tokenizer."""

    vocab_size: int = option(0, least=0, help="The tokenizer trained with this size; 0: --tokenizer_name, Llama 2's.")
    tokenizer_name: str | None = option(None, help="Tokenizer: a folder, a SentencePiece .model file or a Hub name.")
    append_eos: bool = option(False, help="Add EOS after each story.")


@dataclass
class SetArguments(TokenizerArguments):
    """How the texts of a protocol set are made."""

    feature_style: Literal["canonical", "capitalized"] = option(
        "canonical", help="capitalized: as in the published models' training, Badending for BadEnding."
    )
    refusal_text: str | None = option(None, help="Text of a refusal; {feature} is replaced by the feature.")
    transform: list[str] = option(
        [], help=f"Transforms of each record, applied in this order after the other changes. {transforms_help()}"
    )
    protocol_seed: int = option(0, **SEED, help="Seed of the random draws per record.")
    dry_run: bool = option(False, help="Count and show only; write nothing.")

    def written(self) -> dict[str, Any]:
        """Return these flags as arguments of `parse_protocol`, without `transform`."""
        return {"refusal_text": self.refusal_text, "feature_style": self.feature_style, "seed": self.protocol_seed}

    def check_names(self, names: Iterable[str]) -> None:
        """Check the names of new sets.

        Raises:
            UsageError: for a reserved name or the corpus's name.
        """
        for name in names:
            if name in (self.corpus, "train", "test") or "," in name:
                raise UsageError(
                    f"--dataset_name {name!r} is not a valid set name; give a plain one that no corpus has"
                )


@dataclass
class PretokenizeArguments(SetArguments):
    """Tokenize a corpus once; with a protocol's flags, make its protocol set."""

    dataset_name: str | None = option(
        None, folder_name=True, help="Name of the set. Default: derived from the protocol."
    )
    filtering: str | None = option(
        None,
        help="Keep only stories that meet all of: features=Twist,words!=dog,length=200 (over 200 characters).",
    )
    mix_match: str | None = option(None, help="Replace one label by another: features:Foreshadowing=Twist.")
    adversarial_training: str | None = option(None, help="Add a label with a probability: features=Twist:0.5.")
    refusal: str | None = option(None, help="Add a label and refuse the story with a probability: features=Twist:1.0.")
    instruction_subset: str | None = option(
        None, help="Instruction lines to include: Words,Features,Summary,Sentence. Default for a set: all."
    )

    def protocol(self) -> Protocol | None:
        """Return the protocol that the flags describe; None without such flags."""
        from lm_trials.protocols.protocols import parse_protocol

        changes = (self.filtering, self.mix_match, self.adversarial_training, self.refusal, self.transform)
        if self.refusal_text is not None and not self.refusal:
            raise UsageError(f"--refusal_text {self.refusal_text!r} needs --refusal; add it, or remove --refusal_text")
        named = self.dataset_name is not None or self.feature_style != "canonical"
        if not any(changes) and not self.instruction_subset and not named:
            return None
        return parse_protocol(*changes, instruction_subset=self.instruction_subset, **self.written())


@dataclass
class ProtocolSetArguments(SetArguments):
    """Make the sets of the deletion and recovery study for a pair of features."""

    feature_delete: str = option("Twist", help="Feature that fine-tuning deletes.")
    feature_irrelevant: str = option("Foreshadowing", help="Another feature, used as the control.")


@dataclass
class InstructArguments(CorpusArguments):
    """Make prompts with stories as completions, or conversations, of a corpus."""

    style: Literal["prompt", "summary"] = option(
        "prompt", help='prompt: the record\'s instruction, then "Possible story:". summary: "Write " and the summary.'
    )
    dataset_name: str | None = option(
        None, folder_name=True, help="Name of the data set. Default: <corpus>-instruct-<style>."
    )
    conversational: bool = option(
        False,
        not_with="overlong",
        why="later turns are about the whole story",
        help="Make conversations of user and assistant, for chat models.",
    )
    turns: int = option(
        1,
        least=1,
        most=3,
        needs="conversational",
        help="Turns of a conversation, 1 to 3: the story, its summary, its words.",
    )
    seed: int = option(0, **SEED, help="Seed of the wording of later turns' questions.")
    vocab_size: int = option(
        0,
        least=0,
        not_with="tokenizer_name",
        help="Count tokens with the tokenizer trained with this size; 0: --tokenizer_name.",
    )
    tokenizer_name: str | None = option(
        None, help="Count tokens with this tokenizer: a folder, a .model file or a Hub name."
    )
    max_length: int | None = option(
        None,
        least=1,
        needs=("vocab_size", "tokenizer_name"),
        why="to count tokens",
        help="Maximum tokens of an example, [EOS] prompt [BOS] story [EOS]. Default: 350.",
    )
    overlong: Literal["drop", "cut"] = option(
        "drop",
        needs=("vocab_size", "tokenizer_name"),
        help="Longer examples: drop them, or cut the story, without EOS after it.",
    )
    dry_run: bool = option(False, help="Count and show only; write nothing.")

    @property
    def set_folder(self) -> Path:
        """The folder of the data set.

        Raises:
            UsageError: for the corpus's name.
        """
        name = f"{self.corpus}-instruct-{self.style}" if self.dataset_name is None else self.dataset_name
        if name == self.corpus:
            raise UsageError(f"--dataset_name {name} is the corpus itself; give another name")
        return Path(self.data_cache_dir) / name

    def recipe(self) -> Recipe:
        """Return the recipe of the pairs, with the tokenizer loaded."""
        from lm_trials.pairs.instruct import MAX_LENGTH, Recipe

        tokenizer = None
        if self.vocab_size or self.tokenizer_name:
            from lm_trials.tokens.tokenizers import resolve_vocab

            tokenizer = resolve_vocab(self.vocab_size or None, self.tokenizer_name, self.data_cache_dir)
        max_length = MAX_LENGTH if self.max_length is None else self.max_length
        return Recipe(self.style, self.conversational, self.turns, self.seed, tokenizer, max_length, self.overlong)


@dataclass
class DescribeArguments(CorpusArguments):
    """Describe the changes of a protocol set, the diversity of a corpus, or the metrics of a data set.

    `describe NAME` describes a set, `describe --corpus NAME` a corpus, `describe NAME --metrics` any data set that
    `metadata` has measured.
    """

    dataset_name: str | None = option(None, help="Name of a set.")
    metrics: bool = option(
        False, help="Show quantiles and correlations of the metrics, and of a set what its protocol changed."
    )
    output_dir: str = option("out/tables", output=True, help="Folder of the tables and the figure of --metrics.")
    json: str | None = option(None, filled=True, help="JSON file to write the description to.")
    max_stories: int = option(20_000, least=1, help="Train stories compared, from the start; 20,000 take 6 seconds.")
    max_held_out: int = option(1_000, least=1, help="Validation and test stories compared with them.")


@dataclass
class MetadataArguments(DataFolder, Device):
    """Measure each text of a data set: length, readability, vocabulary, sentiment, overlap with the prompt, loss."""

    dataset_name: str = option(
        "", required="NAME_OR_PATH", help="A prepared data set, a file or folder, or a Hub data set."
    )
    dataset_config_name: str | None = option(None, help="Configuration of a Hub data set, or part of a folder.")
    text_column: str | None = option(None, help="Column that holds the text. Default: story, else text.")
    flagged_words: str | None = option(
        None, filled=True, help="File with the words to count, one a line, instead of a short list of violent words."
    )
    bleu_reference: str | None = option(
        None, filled=True, help="Text that BLEU compares each text with. Default: the prompt of each text."
    )
    sentiment: bool = option(True, help="Measure sentiment and subjectivity, which take most of the time.")
    metric: list[str] = option(
        [], distinct=True, help="Further metrics, as FILE.py:function: a Python function from a text to a number."
    )
    model_name_or_path: str | None = option(
        None, filled=True, group="model", help="Model for loss and perplexity: a run, checkpoint, folder or Hub name."
    )
    per_device_eval_batch_size: int = option(
        16, least=1, group="model", needs="model_name_or_path", help="Texts per batch of the model."
    )
    preprocessing_num_workers: int = option(1, least=1, most=1024, help="Processes; no effect on results.")
    output_dir: str = option("out/tables", output=True, help="Folder of batch_metrics.csv.")
