"""Instructions: the lines before a story, in the form that the deletion and recovery study trained on.

    Words: stay, blue, powerful
    Features: Dialogue, BadEnding
    Summary: A bear finds a dragon.
    Sentence: The dragon said that he could stay
    Story: Once upon a time ...

The first four come in an order drawn per record.  Mended here: a sentence is never empty (in the published code a
third of those of two-sentence stories are), a story with no eligible sentence goes without that line instead of being
dropped, and line breaks inside a summary become blanks instead of nothing.

Shape suffixes: N = records.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

import numpy as np

from lm_trials.protocols.protocols import LINES, FeatureStyle, Protocol
from lm_trials.protocols.transforms import RecordColumns, treat
from lm_trials.stories.draws import draw_integers

ORDERS = tuple(itertools.permutations(LINES))
STOPS = re.compile("[.!?]")


def eligible_sentences(story: str) -> list[str]:
    """Return the sentences that an instruction may show: no speech, not empty, on one line, without their full stop.

    >>> eligible_sentences('One day, Tim ran. "Stop!" said Mom.\\nHe stopped. ')
    ['One day, Tim ran', 'He stopped']
    """
    return [" ".join(piece.split()) for piece in _eligible_pieces(story)]


def _eligible_pieces(story: str) -> list[str]:
    pieces = STOPS.split(story)
    return [p for p in pieces if p and '"' not in p and "“" not in p and "”" not in p and not p.isspace()]


def chosen_sentence(story: str, draw: int) -> str:
    """Return the sentence that a record's draw picks; empty where none is eligible."""
    pieces = _eligible_pieces(story)
    return " ".join(pieces[draw % len(pieces)].split()) if pieces else ""


def sentence_draws(keys_N: np.ndarray, seed: int) -> np.ndarray:
    """Return the (N,) draws that pick a sentence; the same in every protocol of one seed."""
    return draw_integers(keys_N, seed, "sentence")


def line_orders(keys_N: np.ndarray, seed: int) -> np.ndarray:
    """Return for each record, (N,), its place in `ORDERS`; the same in every protocol of one seed.

    A protocol that shows fewer lines shows them in the order that they have among all four.
    """
    return (draw_integers(keys_N, seed, "order") % np.uint64(len(ORDERS))).astype(np.int8)


def feature_names(features: Sequence[str], style: FeatureStyle) -> str:
    """Write features out; `capitalized` is how the published models saw them.

    >>> feature_names(["Dialogue", "BadEnding"], "capitalized")
    'Dialogue, Badending'
    """
    return ", ".join(name.capitalize() if style == "capitalized" else name for name in features)


def line_bodies(words: Sequence[str], features: str, summary: str, sentence: str) -> dict[str, str]:
    """Return what stands after each label; a line without content is left out, except for features.

    That a story has no features is something an instruction says; that its summary is not known is not.
    """
    bodies = {
        "Words": ", ".join(" ".join(word.split()) for word in words),
        "Features": features,
        "Summary": " ".join(summary.split()),
        "Sentence": sentence,
    }
    return {line: body for line, body in bodies.items() if body or line == "Features"}


def render(bodies: dict[str, str], order: int, subset: Sequence[str], story: str) -> str:
    """Put the lines in order and the story after them.

    >>> text = render({"Words": "cat", "Features": ""}, order=len(ORDERS) - 1, subset=LINES, story="A cat sat.")
    >>> text.splitlines()
    ['Features: ', 'Words: cat', 'Story: A cat sat.']
    """
    lines = [f"{line}: {bodies[line]}" for line in ORDERS[order] if line in subset and line in bodies]
    return "\n".join([*lines, f"Story: {story}"])


def refusal_story(protocol: Protocol, place: int) -> str:
    """Return the text that stands for the story where condition `place` of `--refusal` applies."""
    return protocol.refusal_text.format(feature=protocol.refusal[place].value)


def apply_protocol(batch: dict[str, list], protocol: Protocol) -> dict[str, list]:
    """Turn a batch of records into the texts of one arm, for `datasets`' batched `map`.

    Rows that the filter removes are not in the result, so `map` must drop the old columns
    (`remove_columns=list(RECORD_SCHEMA)`).  Nothing depends on the batch: see `draws`.

    Returns:
        record_id, text, story (or the refusal), words and features as the arm says them, refused.
    """
    columns = RecordColumns.of(batch)
    treated = treat(columns, protocol)
    sentences, orders = sentence_draws(columns.keys_N, protocol.seed), line_orders(columns.keys_N, protocol.seed)
    out: dict[str, list] = {name: [] for name in ("record_id", "text", "story", "words", "features", "refused")}
    for place, row in enumerate(treated.kept_M.tolist()):
        refused = int(treated.refused_M[place])
        original = batch["story"][row]
        story = original if refused < 0 else refusal_story(protocol, refused)
        bodies = line_bodies(
            treated.words[place],
            feature_names(treated.features[place], protocol.feature_style),
            batch["summary"][row],
            chosen_sentence(original, int(sentences[row])),
        )
        out["record_id"].append(batch["record_id"][row])
        out["text"].append(render(bodies, int(orders[row]), protocol.instruction_subset, story))
        out["story"].append(story)
        out["words"].append(list(treated.words[place]))
        out["features"].append(list(treated.features[place]))
        out["refused"].append(refused >= 0)
    return out
