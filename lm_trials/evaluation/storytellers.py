"""Storytellers: a model with its tokenizer, and the mode in which it is prompted.

    completion    [BOS] text               the model continues a beginning
    instruct      [EOS] prompt [BOS]       as `lm-trials tune` trains it
    chat          the chat template        a conversation

The ids come from `pairs.layouts`, as in training; a story ends at EOS or at the BOS of the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from lm_trials.console import UsageError, note
from lm_trials.evaluation.generation import ends_of, write_stories
from lm_trials.evaluation.sampling import Mode, Sampling
from lm_trials.models.quantization import quantization
from lm_trials.models.reference import (
    LONGEST_WINDOW,
    default_device,
    load_on,
    load_tokenizer_of,
    positions_of,
    read_run,
    resolve_model,
    separator_of,
)
from lm_trials.pairs.layouts import Message, chat_prompt, check_chat, completion_prompts, instruct_prompts, turn_end
from lm_trials.tokens.stores import Separator, opening_of


@dataclass(frozen=True)
class Storyteller:
    """A model that is prompted for stories.

    Attributes:
        name: as the user gave it.
        separator: the token before each document of its pretraining.
        seed: of its training; None without a `run.json`.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    mode: Mode
    separator: Separator = "bos"
    seed: int | None = None

    @property
    def positions(self) -> int:
        """The maximum tokens of prompt and story together."""
        return positions_of(self.model) or LONGEST_WINDOW

    @property
    def ends(self) -> list[int]:
        """The ids that end a story: BOS and EOS, and in a conversation those of its template and generation config."""
        if self.mode != "chat":
            return ends_of(self.tokenizer)
        settings = self.model.generation_config
        named = settings.eos_token_id if isinstance(settings, GenerationConfig) else None
        also = named if isinstance(named, list) else [] if named is None else [named]
        end = turn_end(self.tokenizer)
        return ends_of(self.tokenizer, also if end is None else [*also, end])

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each prompt or beginning."""
        if self.mode == "instruct":
            return instruct_prompts(self.tokenizer, texts)
        if self.mode == "chat":
            return [self.conversation([{"role": "user", "content": text}]) for text in texts]
        return completion_prompts(self.tokenizer, texts, self.separator)

    def conversation(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids of a conversation up to the model's next turn."""
        return chat_prompt(self.tokenizer, messages)

    def room(self, prompts: Sequence[Sequence[int]], max_new_tokens: int | None = None) -> int:
        """Return how many new tokens fit after the longest prompt, or `max_new_tokens`.

        Raises:
            UsageError: if none fit, or fewer than `max_new_tokens`.
        """
        longest = max(map(len, prompts))
        left = self.positions - longest
        if left < max(max_new_tokens or 1, 1):
            smaller = " or a smaller --max_new_tokens" if left > 0 else ""
            raise UsageError(
                f"a prompt of {longest:,} tokens leaves room for {max(left, 0):,} within the "
                f"{self.positions:,} positions of {self.name}; give a shorter prompt{smaller}"
            )
        return max_new_tokens or left

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        keys: Sequence[str],
        max_new_tokens: int,
        sampling: Sampling,
        batch_size: int = 16,
        **options: Any,
    ) -> list[list[int]]:
        """Generate a story for each prompt and return its ids, without what ended it (see `write_stories`).

        A story with fewer than `max_new_tokens` was ended by the model.  `options` are arguments of `write_stories`.
        """
        return write_stories(
            self.model,
            self.tokenizer,
            prompts,
            max_new_tokens=max_new_tokens,
            **asdict(sampling),
            batch_size=batch_size,
            keys=keys,
            more_ends=self.ends,
            **options,
        )

    def story_start(self, prompt: Sequence[int]) -> list[int]:
        """Return the part of a prompt that belongs to the story: the beginning in completion mode, else nothing."""
        return list(prompt[len(opening_of(self.tokenizer, self.separator)) :]) if self.mode == "completion" else []


def trained_mode(run: Mapping[str, Any] | None) -> Mode | None:
    """Return the mode that a run's model was trained in; None if its `run.json` does not say.

    >>> [trained_mode(run) for run in (None, {"outcome": {"prompt_layout": "text"}})]
    [None, 'completion']
    """
    modes: dict[str | None, Mode] = {"instruct": "instruct", "chat": "chat", "text": "completion"}
    return modes.get(run["outcome"].get("prompt_layout")) if run else None


def open_storyteller(
    name: str,
    mode: Mode | None = None,
    tokenizer_name: str | None = None,
    otherwise: Mode = "completion",
    load_in_8bit: bool = False,
    load_in_4bit: bool = False,
    use_cpu: bool = False,
) -> Storyteller:
    """Load a run, a checkpoint, an adapter or a Hub model to be prompted for stories.

    Args:
        mode: None for the mode it was trained in, or `otherwise` if that is unknown.
        load_in_8bit, load_in_4bit: quantize the weights, an adapter's base.
        use_cpu: use the CPU although there is a GPU.

    Raises:
        UsageError: if it cannot be loaded; in chat mode for a model without a chat template.
    """
    reference = resolve_model(name)
    tokenizer = load_tokenizer_of(reference, tokenizer_name)
    run = read_run(Path(reference.path))
    mode = mode or trained_mode(run) or otherwise
    if mode == "chat":
        check_chat(tokenizer, reference.name)
        if turn_end(tokenizer) is None:
            note(
                f"note: the chat template of {reference.name} ends no answer with a token: answers end at EOS or "
                "--max_new_tokens"
            )
    device = default_device(use_cpu)
    quantized = quantization(load_in_8bit, load_in_4bit, device.type, torch.float32)
    model = load_on(device, reference, quantization_config=quantized)
    seed = run["replicate"].get("seed") if run else None
    return Storyteller(reference.name, model, tokenizer, mode, separator_of(run), seed)
