"""Storytellers: a model with its tokenizer, and the form in which it is asked for a story.

    completion    [BOS] text               the model goes on with a beginning
    instruct      [EOS] prompt [BOS]       as `sft_lora.py` trains it
    chat          the chat template        a conversation

The ids come from `pairs.layouts`, as those of training do; a story is cut at EOS and at the BOS of the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lm_trials.console import UsageError
from lm_trials.evaluation.generation import ends_of, write_stories
from lm_trials.evaluation.sampling import Mode, Sampling
from lm_trials.evaluation.streamers import StoryStreamer
from lm_trials.models.reference import (
    load_model,
    load_tokenizer_of,
    positions_of,
    read_run,
    resolve_model,
    separator_of,
)
from lm_trials.pairs.layouts import Message, chat_prompt, check_chat, completion_prompts, instruct_prompts
from lm_trials.tokens.stores import Separator, opening_of

LONGEST = 1024
"""Tokens of prompt and story where a model's positions have no limit."""


@dataclass(frozen=True)
class Storyteller:
    """A model that is asked for stories.

    Attributes:
        name: what the user calls it.
        mode: how it is asked.
        separator: what stood before each document of its pretraining.
        seed: of its training, where a `run.json` tells.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    mode: Mode
    separator: Separator = "bos"
    seed: int | None = None

    @property
    def positions(self) -> int:
        """Tokens of prompt and story together, at most."""
        return positions_of(self.model) or LONGEST

    @property
    def ends(self) -> list[int]:
        """The ids that end a story: BOS and EOS, and in a conversation what the model's own settings name besides."""
        named = self.model.generation_config.eos_token_id if self.mode == "chat" else None
        return ends_of(self.tokenizer, named if isinstance(named, list) else [] if named is None else [named])

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids that the model is given for each prompt or beginning."""
        if self.mode == "instruct":
            return instruct_prompts(self.tokenizer, texts)
        if self.mode == "chat":
            return [self.conversation([{"role": "user", "content": text}]) for text in texts]
        return completion_prompts(self.tokenizer, texts, self.separator)

    def conversation(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids of a conversation up to the model's next turn."""
        return chat_prompt(self.tokenizer, messages)

    def room(self, prompts: Sequence[Sequence[int]], max_new_tokens: int | None = None) -> int:
        """Return how many tokens may be written after the longest prompt.

        Raises:
            UsageError: where that is none, or fewer than asked for.
        """
        longest = max(map(len, prompts))
        left = self.positions - longest
        if left < max(max_new_tokens or 1, 1):
            smaller = " or a smaller --max_new_tokens" if left > 0 else ""
            raise UsageError(
                f"a prompt of {longest:,} tokens leaves room for {max(left, 0):,} within the {self.positions:,} "
                f"positions of {self.name}; give a shorter prompt{smaller}"
            )
        return max_new_tokens or left

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        keys: Sequence[str],
        max_new_tokens: int,
        sampling: Sampling,
        batch_size: int = 16,
        streamer: StoryStreamer | None = None,
        by_length: bool = False,
        description: str | None = None,
    ) -> list[list[int]]:
        """Write a story for each prompt and return its ids, without what ended it.

        A story has ended by itself where it has fewer than `max_new_tokens`.  What is drawn for it depends on the seed
        and on its key, whatever is written beside it.
        """
        self._check_ids(prompts)
        return write_stories(
            self.model,
            self.tokenizer,
            prompts,
            max_new_tokens=max_new_tokens,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            seed=sampling.seed,
            batch_size=batch_size,
            keys=keys,
            more_ends=self.ends,
            streamer=streamer,
            by_length=by_length,
            description=description,
        )

    def _check_ids(self, prompts: Sequence[Sequence[int]]) -> None:
        largest, rows = max(map(max, prompts)), self.model.get_input_embeddings().num_embeddings
        if largest >= rows:
            raise UsageError(
                f"{self.name} has {rows:,} embeddings and the prompt has the token {largest:,}; "
                "give the tokenizer it was trained with by --tokenizer_name"
            )

    def story_start(self, prompt: Sequence[int]) -> list[int]:
        """Return the part of a prompt that belongs to the story: the beginning that is completed, else nothing."""
        return list(prompt[len(opening_of(self.tokenizer, self.separator)) :]) if self.mode == "completion" else []


def trained_mode(run: Mapping[str, Any] | None) -> Mode | None:
    """Return how a run's model wants to be asked; None where its `run.json` does not tell.

    >>> [trained_mode(run) for run in (None, {"outcome": {"prompt_layout": "text"}})]
    [None, 'completion']
    """
    layout = run["outcome"].get("prompt_layout") if run else None
    return {"instruct": "instruct", "chat": "chat", "text": "completion"}.get(layout)  # type: ignore[return-value]


def open_storyteller(
    name: str,
    mode: Mode | None = None,
    tokenizer_name: str | None = None,
    otherwise: Mode = "completion",
    load_in_8bit: bool = False,
    load_in_4bit: bool = False,
    use_cpu: bool = False,
) -> Storyteller:
    """Load a model, a run, a checkpoint, an adapter or a Hub model, to be asked for stories.

    Args:
        mode: how it is asked; None for as it was trained, and `otherwise` where nothing tells.
        load_in_8bit, load_in_4bit: quantize the weights, an adapter's base.
        use_cpu: stay on the CPU where there is a GPU.

    Raises:
        UsageError: where it cannot be had; in chat mode for a model without a chat template.
    """
    reference = resolve_model(name)
    tokenizer = load_tokenizer_of(reference, tokenizer_name)
    run = read_run(Path(reference.path)) if Path(reference.path).is_dir() else None
    mode = mode or trained_mode(run) or otherwise
    if mode == "chat":
        check_chat(tokenizer, reference.name)
    device = "cuda" if torch.cuda.is_available() and not use_cpu else "cpu"
    if load_in_8bit or load_in_4bit:
        from lm_trials.models.adapters import quantization  # peft takes two seconds to import

        quantized = quantization(load_in_8bit, load_in_4bit, device, torch.float32)
        model = load_model(reference, quantization_config=quantized, device_map={"": device})
    else:
        model = load_model(reference).to(device)
    seed = run["replicate"].get("seed") if run else None
    return Storyteller(reference.name, model, tokenizer, mode, separator_of(run), seed)
