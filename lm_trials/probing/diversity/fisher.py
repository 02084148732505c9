"""Fisher: Task2Vec's embedding of a batch of texts by one fixed probe network.

The embedding of a batch B is the diagonal of the probe's Fisher information, after its final layer was fitted to the
batch, averaged over the weights of each filter:

    F_B = E over texts x of B, places t and tokens v ~ p(. | x_<t)  of  (d log p(v | x_<t) / d weight) ** 2

(Achille et al. 2019, arXiv 1902.03545; for text Lee, Miranda, Sundar and Koyejo, arXiv 2306.13840, section 2.1).

One backward pass for each text is enough: tokens drawn at different places are independent given the text and each
gradient has mean zero, so the square of the text's summed gradient is an unbiased draw of the sum of squares (not so
with labels, the "empirical Fisher").  tests/probing/diversity/test_fisher.py enumerates all draws: equal to 1e-10.

A drawn token enters only as e_v - p, with covariance diag(p) - p p', and any vector with this covariance has the same
expectation.  `drawn_signs` has no rare large values: with 4 draws from 32 stories, a demo model's embeddings of one
batch are at distance 0.009 with signs and 0.033 with tokens.

Differences from the paper's code (alycialee/beyond-scale-language-data-diversity): it pairs the logits of place t with
a token drawn at place t + 1, so that the result is not a Fisher information; counts padding as text; leaves dropout on;
squares gradients of means over 8 texts, another scale; fits GPT-2's final layer together with the tied token table
(here a copy); and takes the inputs of GPT-2's `Conv1D` as filters (here its output units, as in Task2Vec).  As there,
biases are left out, each normalization weight is a filter, and each row of a table is a filter.

Shape suffixes: T = places, V = vocabulary, D = width, N = all places of a batch, F = filters.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lm_trials.console import UsageError
from lm_trials.models.shapes import text_config
from lm_trials.probing.diversity.flags import DiversityArguments

# Places whose logits are in memory at once while the final layer is fitted: 200 MB for 1,024 places of GPT-2.
PLACES = 1024


@dataclass(frozen=True)
class TaskEmbedding:
    """The embedding of a batch of texts.

    Attributes:
        halves_2F: the mean squared gradient of one place's log-probability, by filter, in squared nats, from the even
            and from the odd draws, which are independent.
        places: number of predicted tokens.
        loss, fitted_loss: nats per token before and after the final layer was fitted.
    """

    halves_2F: np.ndarray
    places: int
    loss: float
    fitted_loss: float

    @property
    def fisher_F(self) -> np.ndarray:
        """The embedding: the mean over all draws."""
        # Most of a coefficient of few draws is noise: one batch embedded twice is 0.033 apart with 4 token draws,
        # where two batches are 0.094 apart.
        return self.halves_2F.mean(axis=0)


@dataclass(frozen=True)
class Weight:
    """The weights of one layer, and the dimension of its filters."""

    name: str
    values: torch.Tensor
    filter_dim: int
    is_table: bool

    def filter_means(self, squares: torch.Tensor) -> torch.Tensor:
        """Average a tensor of the weights' shape over each filter, -> (filters of this layer,)."""
        others = [dim for dim in range(squares.dim()) if dim != self.filter_dim]
        return squares.mean(dim=others) if others else squares


class ProbeNetwork:
    """A causal language model that embeds batches of texts; its weights are not changed.

    Raises:
        UsageError: for a model that computes more than one linear layer after its body.
    """

    def __init__(self, model: PreTrainedModel, args: DiversityArguments) -> None:
        if hasattr(model, "merge_and_unload"):  # filters are those of the layers with the adapter merged
            from lm_trials.models.adapters import merged  # peft takes two seconds to import

            model = merged(model, "--model_name_or_path")
        self.model = model.eval()
        self.body = model.base_model
        self.final_layer = model.get_output_embeddings()
        self.args = args
        self.weights = _weights_of(self.body)
        for weight in self.weights:
            weight.values.requires_grad_(True)
        self._check_final_layer()

    @property
    def is_table_F(self) -> np.ndarray:
        """Which filters are rows of the token or position table."""
        return np.concatenate([np.full(w.values.shape[w.filter_dim], w.is_table) for w in self.weights])

    def _check_final_layer(self) -> None:
        ids = torch.arange(3, device=self.model.device)[None] % text_config(self.model).vocab_size
        with torch.no_grad():
            whole, parts = self.model(input_ids=ids, use_cache=False).logits, self.final_layer(self._hidden(ids[0]))
        if not torch.allclose(whole[0].float(), parts.float(), rtol=1e-3, atol=1e-4):
            raise UsageError(
                f"--model_name_or_path: a {type(self.model).__name__} changes the logits after its final layer, which "
                "this probe cannot fit; use a GPT-2 or Llama model"
            )

    def _hidden(self, ids_T: torch.Tensor) -> torch.Tensor:
        """Return the input of the final layer at each place, (T, D)."""
        return self.body(input_ids=ids_T[None], use_cache=False).last_hidden_state[0]

    def embed(self, texts: Sequence[np.ndarray], name: str) -> TaskEmbedding:
        """Embed a batch of texts, each its (T + 1,) ids with BOS first; texts are run one by one, without padding.

        The same texts, `name` and arguments give the same bits; another name seeds other random draws.

        Raises:
            UsageError: for gradients that are not finite, or all 0.
        """
        ids = [torch.as_tensor(np.asarray(text, dtype=np.int64), device=self.model.device) for text in texts]
        with torch.no_grad():
            features_ND = torch.cat([self._hidden(ids_T[:-1]) for ids_T in ids])
        head, loss, fitted_loss = fit_final_layer(
            self.final_layer, features_ND, torch.cat([ids_T[1:] for ids_T in ids]), self.args
        )
        generator = torch.Generator().manual_seed(_seed_of(self.args.seed, name))
        sums_2F = torch.stack([self._text_fisher(ids_T, head, generator) for ids_T in ids]).sum(dim=0)
        places = len(features_ND)
        halves_2F = (sums_2F / (places * self.args.fisher_draws / 2)).numpy()
        if not np.isfinite(halves_2F).all() or not halves_2F.any(axis=1).all():
            raise UsageError(
                f"--model_name_or_path: gradients on {name} are not finite or all 0; use a model whose training was "
                "stable, or lower --finetune_learning_rate"
            )
        return TaskEmbedding(halves_2F, places, loss, fitted_loss)

    def _text_fisher(self, ids_T: torch.Tensor, head: nn.Module, generator: torch.Generator) -> torch.Tensor:
        """Return the (2, F) squared gradients of one text, summed over the even and over the odd draws."""
        logits_TV = head(self._hidden(ids_T[:-1]))
        # On the CPU, so that the draws are the same on every device.
        chances_TV = logits_TV.detach().softmax(dim=-1).cpu()
        squares: list[torch.Tensor] = []
        for draw in range(self.args.fisher_draws):
            scores_TV = DRAWINGS[self.args.fisher_drawing](chances_TV, generator).to(logits_TV.device)
            again = draw + 1 < self.args.fisher_draws
            squares.append(squared_gradients(logits_TV, scores_TV, self.weights, keep_graph=again))
        return torch.stack([torch.stack(squares[half::2]).sum(dim=0) for half in (0, 1)])


def _weights_of(body: nn.Module) -> list[Weight]:
    """Return the weights of every layer of the body without biases, shared ones once."""
    found: dict[int, Weight] = {}
    for name, module in body.named_modules():
        values = getattr(module, "weight", None)
        if isinstance(values, nn.Parameter) and id(values) not in found:
            last = isinstance(module, Conv1D)
            found[id(values)] = Weight(name, values, int(last), isinstance(module, nn.Embedding))
    return list(found.values())


def _seed_of(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest(), "big") >> 1


def drawn_tokens(chances_TV: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draw a token at each place and return the gradient of its log-probability by the logits, e_v - p, (T, V)."""
    drawn_T1 = torch.multinomial(chances_TV, 1, generator=generator)
    return -chances_TV.scatter_add(1, drawn_T1, -torch.ones_like(chances_TV[:, :1]))


def drawn_signs(chances_TV: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return vectors with mean 0 and the covariance diag(p) - p p' of `drawn_tokens`, made of V random signs.

    They are (diag(q) - p q') s for signs s and q = sqrt(p).  If p is nearly 1 for a token, drawn tokens have almost
    always a gradient near 0 and rarely a large one; the vectors of signs have nearly constant length.
    """
    signs_TV = torch.randint(0, 2, chances_TV.shape, generator=generator).to(chances_TV.dtype) * 2 - 1
    return signs_to_scores(chances_TV, signs_TV)


def signs_to_scores(chances_TV: torch.Tensor, signs_TV: torch.Tensor) -> torch.Tensor:
    """Return (diag(q) - p q') s at each place, with q = sqrt(p)."""
    spread_TV = chances_TV.sqrt() * signs_TV
    return spread_TV - chances_TV * spread_TV.sum(dim=1, keepdim=True)


DRAWINGS = {"signs": drawn_signs, "tokens": drawn_tokens}


def squared_gradients(
    logits_TV: torch.Tensor, scores_TV: torch.Tensor, weights: Iterable[Weight], keep_graph: bool = False
) -> torch.Tensor:
    """Return the squared gradient of a text's logits weighted by `scores_TV`, averaged by filter, -> (F,) float64."""
    weights = list(weights)
    gradients = torch.autograd.grad(
        logits_TV,
        [weight.values for weight in weights],
        grad_outputs=scores_TV,
        retain_graph=keep_graph,
        materialize_grads=True,
    )
    means = [weight.filter_means(gradient.square()) for weight, gradient in zip(weights, gradients, strict=True)]
    return torch.cat(means).cpu().double()


def fit_final_layer(
    final_layer: nn.Module, features_ND: torch.Tensor, targets_N: torch.Tensor, args: DiversityArguments
) -> tuple[nn.Module, float, float]:
    """Fit a copy of the final layer to the next tokens of a batch; return it with the loss before and after.

    AdamW without weight decay, each update on the whole batch, so that there is no order of minibatches.  The paper's
    code uses minibatches of 8 texts at 5e-5 for 10 passes.

    Raises:
        UsageError: if the loss does not stay finite.
    """
    head = copy.deepcopy(final_layer).requires_grad_(True)
    optimizer = torch.optim.AdamW(head.parameters(), lr=args.finetune_learning_rate, weight_decay=0.0)
    losses = []
    for step in range(args.finetune_steps + 1):
        last = step == args.finetune_steps
        optimizer.zero_grad()
        total = 0.0
        with torch.set_grad_enabled(not last):
            for features, targets in zip(features_ND.split(PLACES), targets_N.split(PLACES), strict=True):
                nats = cross_entropy(head(features).float(), targets, reduction="sum")
                if not last:
                    (nats / len(targets_N)).backward()
                total += nats.item()
        losses.append(total / len(targets_N))
        if not last:
            optimizer.step()
    if not np.isfinite(losses).all():
        raise UsageError(
            f"--finetune_learning_rate {args.finetune_learning_rate:g}: the final layer's loss goes from {losses[0]:g} "
            f"to {losses[-1]:g} nats per token; lower it"
        )
    return head.requires_grad_(False), losses[0], losses[-1]
