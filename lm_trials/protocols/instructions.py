"""Instructions: the lines before a story, in the form that the deletion and recovery study trained on.

    Words: stay, blue, powerful
    Features: Dialogue, BadEnding
    Summary: A bear finds a dragon.
    Sentence: The dragon said that he could stay
    Story: Once upon a time ...

The order of the first four is drawn per record.  Unlike in the published code, a sentence is never empty (there a third
of those of two-sentence stories are), a story without an eligible sentence is kept without that line, and line breaks
inside a summary become spaces instead of nothing.

Shape suffixes: N = records.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lm_trials.protocols.columns import RecordColumns, TransformedColumns, transform_columns
from lm_trials.protocols.protocols import LINES, FeatureStyle, Protocol
from lm_trials.stories.draws import draw_integers

ORDERS = tuple(itertools.permutations(LINES))  # manifests and stores have places in this tuple; keep its order
STOPS = re.compile("[.!?]")
STORY_LINE = re.compile(r"(?:^|\n)Story: (?=\S)")
BEGINS_WITH_LINES = re.compile(rf"(?:{'|'.join((*LINES, 'Story'))}):")


def chosen_sentence(story: str, draw: int) -> str:
    """Return the sentence that a record's draw picks, on one line, without its full stop; "" where none is eligible.

    Eligible are sentences without speech that are not empty.

    >>> chosen_sentence('One day, Tim ran. "Stop!" said Mom.\\nHe stopped. ', draw=1)
    'He stopped'
    """
    pieces = STOPS.split(story)
    pieces = [p for p in pieces if p and '"' not in p and "“" not in p and "”" not in p and not p.isspace()]
    return " ".join(pieces[draw % len(pieces)].split()) if pieces else ""


def sentence_draws(keys_N: np.ndarray, seed: int) -> np.ndarray:
    """Return the (N,) draws that pick a sentence, the same in every protocol with this seed."""
    return draw_integers(keys_N, seed, "sentence")


def line_orders(keys_N: np.ndarray, seed: int) -> np.ndarray:
    """Return for each record, (N,), its place in `ORDERS`, the same in every protocol with this seed."""
    return (draw_integers(keys_N, seed, "order") % np.uint64(len(ORDERS))).astype(np.int8)


def feature_names(features: Sequence[str], style: FeatureStyle) -> str:
    """Return features as text; the published models were trained on `capitalized` names.

    >>> feature_names(["Dialogue", "BadEnding"], "capitalized")
    'Dialogue, Badending'
    """
    return ", ".join(name.capitalize() if style == "capitalized" else name for name in features)


def line_bodies(words: Sequence[str], features: str, summary: str, sentence: str) -> dict[str, str]:
    """Return the text after each label; a line without content is left out.

    A features line is kept: an empty one means that the story has no features, not that they are unknown.
    """
    bodies = {
        "Words": ", ".join(" ".join(word.split()) for word in words),
        "Features": features,
        "Summary": " ".join(summary.split()),
        "Sentence": sentence,
    }
    return {line: body for line, body in bodies.items() if body or line == "Features"}


def render(bodies: dict[str, str], order: int, subset: Sequence[str], story: str) -> str:
    """Return the lines of `subset` in order, and the story after them.

    >>> text = render({"Words": "cat", "Features": ""}, order=len(ORDERS) - 1, subset=LINES, story="A cat sat.")
    >>> text.splitlines()
    ['Features: ', 'Words: cat', 'Story: A cat sat.']
    """
    lines = [f"{line}: {bodies[line]}" for line in ORDERS[order] if line in subset and line in bodies]
    return "\n".join([*lines, f"Story: {story}"])


def story_start(text: str) -> int:
    """Return where the story begins: after the instruction lines of a set's text, else at the start.

    >>> text = "Features: Twist\\nStory: Tom ran."
    >>> text[story_start(text):], story_start("Tom said: Story: no")
    ('Tom ran.', 0)
    """
    if not BEGINS_WITH_LINES.match(text):
        return 0
    match = STORY_LINE.search(text)
    return match.end() if match else 0


def refusal_story(protocol: Protocol, place: int) -> str:
    """Return the text that replaces the story where condition `place` of `--refusal` applies."""
    return protocol.refusal_text.format(feature=protocol.refusal[place].value)


def apply_protocol(batch: Mapping[str, list[Any]], protocol: Protocol) -> dict[str, list]:
    """Return the texts of one arm for a batch of records, for `datasets`' batched `map`: see `render_columns`.

    Rows that the filter removes are not in the result, so `map` must drop the old columns
    (`remove_columns=list(RECORD_SCHEMA)`).
    """
    columns = RecordColumns.of(batch)
    return render_columns(columns, transform_columns(columns, protocol), protocol)


def render_columns(columns: RecordColumns, transformed: TransformedColumns, protocol: Protocol) -> dict[str, list]:
    """Return the texts of the records that a protocol kept.

    Returns:
        record_id, text, prompt (the text up to "Story:"), story (or the refusal), words and features of the
        instruction, refused.
    """
    sentences, orders = sentence_draws(columns.keys_N, protocol.seed), line_orders(columns.keys_N, protocol.seed)
    names = ("record_id", "text", "prompt", "story", "words", "features", "refused")
    rows = []
    for place, row in enumerate(transformed.kept_M.tolist()):
        refused = int(transformed.refused_M[place])
        record = transformed.records[place] if transformed.records else columns.row(row)
        words, features = transformed.words[place], transformed.features[place]
        bodies = line_bodies(
            words,
            feature_names(features, protocol.feature_style),
            record["summary"],
            chosen_sentence(record["story"], int(sentences[row])),
        )
        story = record["story"] if refused < 0 else refusal_story(protocol, refused)
        text = render(bodies, int(orders[row]), protocol.instruction_subset, story)
        prompt = text.removesuffix(f" {story}")
        rows.append((record["record_id"], text, prompt, story, list(words), list(features), refused >= 0))
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)) if rows else {name: [] for name in names}
