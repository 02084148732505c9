"""Generation of stories: batched and seeded, without using torch's random state."""

from __future__ import annotations

import hashlib
import itertools
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.streamers import BaseStreamer

from lm_trials.console import UsageError, note, progress
from lm_trials.evaluation.losses import NotFiniteError, quiet, rounding_of
from lm_trials.models.reference import positions_of
from lm_trials.tokens.stores import document_marks

# Most models take padded batches. A RWKV reads the padding, and with its cache mixes the rows of a batch; the cache of
# a Jamba without attention layers fails.
BATCHINGS = {"padded": "batches", "equal": "batches of prompts of one length", "single": "batches of one"}
STEPS = 1e-3  # of the largest logit: convolutions on a GPU round to TF32
_FOUND: WeakKeyDictionary[PreTrainedModel, tuple[str, bool]] = WeakKeyDictionary()
TAIL = 16  # tokens in which `ended` looks for an end; the longest label, as byte tokens, has 10


def write_stories(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int | Sequence[int] = 200,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 16,
    ended: Callable[[str], bool] | None = None,
    keys: Sequence[str] | None = None,
    more_ends: Collection[int] = (),
    streamer: BaseStreamer | None = None,
    by_length: bool = False,
    description: str | None = None,
) -> list[list[int]]:
    """Continue each prompt and return the new tokens, without the token that ends the story.

    Prompts are padded on the left, with an attention mask; where that changes the stories, a batch has prompts of one
    length (`batching`).  A story ends at EOS or at the BOS that begins the next one.  The random draws of a story
    depend on the seed and its key alone.

    Args:
        prompts: token ids, each with the tokenizer's BOS (`tokens.stores.document_marks`).
        max_new_tokens: of every story, which must fit the positions; or one limit each, lowered to the positions.
        temperature: 0 is greedy.
        top_k: 0 is no limit.
        ended: given the text of a story's last `TAIL` tokens, returns whether to stop it; they are not cut off.
        keys: a name for each prompt; default: its number.
        more_ends: further ids that end a story, which some chat models have.
        streamer: receives the tokens while they are generated; for one prompt.
        by_length: put prompts of similar length into one batch, which saves padding; results keep the given order.
        description: of a progress bar; None for no bar.

    Raises:
        UsageError: if a prompt and `max_new_tokens`, or one token, exceed the model's positions.
    """
    if set_aside := getattr(model, "settings_set_aside", []):
        note(
            f"note: {model.name_or_path}: generation_config.json is set aside ({', '.join(set_aside)}); tokens are "
            "chosen by the flags alone"
        )
        set_aside.clear()
    ends = ends_of(tokenizer, more_ends)
    bos, _ = document_marks(tokenizer, append_eos=False)
    positions = positions_of(model) or sys.maxsize
    needed = max_new_tokens if isinstance(max_new_tokens, int) else 1
    longest = max(map(len, prompts), default=0)
    if longest + needed > positions:
        raise UsageError(
            f"a prompt of {longest} tokens and {needed} new tokens are more than the model's {positions} positions; "
            "give fewer new tokens or shorter prompts"
        )
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else max_new_tokens
    keys = keys or [str(number) for number in range(len(prompts))]
    order = list(range(len(prompts)))
    if by_length:
        # One limit for a batch: stories of similar limits together waste the fewest steps.
        order.sort(key=lambda place: (limits[place], len(prompts[place])))
    how, cached = batching(model) if prompts else ("padded", True)
    groups, size = [order], 1 if how == "single" else batch_size
    if how == "equal":
        order.sort(key=lambda place: len(prompts[place]))
        groups = [list(same) for _, same in itertools.groupby(order, key=lambda place: len(prompts[place]))]
    batches: Iterable[list[int]] = [group[at : at + size] for group in groups for at in range(0, len(group), size)]
    if description:
        batches = progress(batches, description, "stories", len(order), size=len)
    written: dict[int, list[int]] = {}
    with quiet(model):
        for batch in batches:
            longest = max(len(prompts[place]) for place in batch)
            input_ids = torch.full((len(batch), longest), ends[0])
            attention_mask = torch.zeros_like(input_ids)
            for row, place in enumerate(batch):
                input_ids[row, longest - len(prompts[place]) :] = torch.tensor(prompts[place])
                attention_mask[row, longest - len(prompts[place]) :] = 1
            config = GenerationConfig(
                max_new_tokens=min(max(limits[place] for place in batch), positions - longest),
                bos_token_id=bos[0],
                eos_token_id=ends,
                pad_token_id=ends[0],
                use_cache=cached,
                do_sample=False,  # `OwnDraws` adds the randomness and `generate` takes the largest score
            )
            stop: list[StoppingCriteria] = [TextStop(tokenizer, ended, longest)] if ended else []
            draws = own_draws(seed, [keys[place] for place in batch], temperature, top_k, top_p) if temperature else []
            output = model.generate(  # type: ignore[operator]  # declared by causal LMs, not by PreTrainedModel
                input_ids=input_ids.to(model.device),
                attention_mask=attention_mask.to(model.device),
                generation_config=config,
                stopping_criteria=StoppingCriteriaList(stop),
                logits_processor=LogitsProcessorList(draws),
                streamer=streamer,
            )
            for place, ids in zip(batch, output[:, longest:].tolist(), strict=True):
                ids = itertools.takewhile(lambda token: token not in ends, ids)
                written[place] = list(itertools.islice(ids, limits[place]))
    return [written[place] for place in range(len(prompts))]


def batching(model: PreTrainedModel) -> tuple[str, bool]:
    """Return which prompts a model may have in one batch, and whether it may use a cache, to generate as it predicts.

    Two tokens after a short prompt are compared with a plain forward pass, in a batch and alone.  The first way that
    agrees is returned, and told once for each model if it is not the fastest.

    Raises:
        NotFiniteError: for predictions that are nan, which would be a text all the same.
    """
    if model in _FOUND:
        return _FOUND[model]
    short, others = [1, 2], {"padded": [[3, 4, 5, 6, 7]], "equal": [[3, 4]], "single": []}
    for cached, how in itertools.product((True, False), BATCHINGS):
        rows = [short, *others[how]]
        longest = max(map(len, rows))
        input_ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows], device=model.device)
        config = GenerationConfig(
            max_new_tokens=2,
            min_new_tokens=2,  # an EOS would end it after one
            pad_token_id=0,
            use_cache=cached,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        with quiet(model):
            try:
                output: Any = model.generate(  # type: ignore[operator]
                    input_ids=input_ids, attention_mask=(input_ids > 0).long(), generation_config=config
                )
            except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):  # a cache that does not fit
                continue
            plain_BT = torch.tensor([[*short, int(output.sequences[0, -2])]], device=model.device)
            plain_TV = model(input_ids=plain_BT, use_cache=False).logits[0, -2:].float()
        if plain_TV.isnan().any():
            raise NotFiniteError(
                "the predictions are nan, as the model's activations overflow; give an earlier checkpoint, or float32 "
                "or bfloat16 instead of float16"
            )
        generated_TV = torch.stack([logits_BV[0] for logits_BV in output.logits]).float()
        if (generated_TV - plain_TV).abs().max() <= max(STEPS, rounding_of(model)) * plain_TV.abs().max():
            break
    if (cached, how) != (True, "padded"):
        note(
            f"note: a {model.config.model_type} generates in {BATCHINGS[how]}, {'with' if cached else 'without'} a "
            "cache, because its predictions change otherwise; this takes longer"
        )
    _FOUND[model] = how, cached
    return how, cached


def ends_of(tokenizer: PreTrainedTokenizerBase, more: Collection[int] = ()) -> list[int]:
    """Return the ids that end a story: EOS, and the BOS that begins the next."""
    bos, _ = document_marks(tokenizer, append_eos=False)
    return sorted({bos[0], *([tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []), *more})


def own_draws(seed: int, keys: Sequence[str], temperature: float, top_k: int, top_p: float) -> list[LogitsProcessor]:
    """Return the processors that turn `generate`'s greedy choice into sampling with separate draws for each row."""
    warpers: list[LogitsProcessor] = [TemperatureLogitsWarper(temperature)]
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    return [*warpers, OwnDraws(seed, keys)]


class OwnDraws(LogitsProcessor):
    """Adds Gumbel noise to each log-probability: the largest sum is a draw from the distribution (Gumbel 1954).

    `torch.multinomial` draws for a whole batch at once, so a story would depend on the others of its batch.
    """

    def __init__(self, seed: int, keys: Sequence[str]) -> None:
        names = [hashlib.blake2b(f"{seed}:{key}".encode(), digest_size=16).digest() for key in keys]
        self.generators = [np.random.Generator(np.random.Philox(key=int.from_bytes(name, "big"))) for name in names]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Return the (B, V) scores with each row's noise added."""
        # Gumbel noise: the largest of log p + noise is a draw from p. One generator for each story, so that a story
        # is the same in any batch.
        noise_BV = np.stack([generator.gumbel(size=scores.shape[1]) for generator in self.generators])
        return scores + torch.from_numpy(noise_BV).to(scores)  # type: ignore[return-value]


class TextStop(StoppingCriteria):
    """Stops each story of a batch separately, by its text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ended: Callable[[str], bool], prompt_length: int) -> None:
        self.tokenizer, self.ended, self.prompt_length = tokenizer, ended, prompt_length

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: object) -> torch.BoolTensor:
        """Return for each row whether its story has ended."""
        tail = input_ids[:, max(self.prompt_length, input_ids.shape[1] - TAIL) :]
        texts = self.tokenizer.batch_decode(tail)
        return torch.tensor([self.ended(text) for text in texts], device=input_ids.device)  # type: ignore[return-value]
