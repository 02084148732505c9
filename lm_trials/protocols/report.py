"""Reports of protocol sets: counts and examples of what a protocol changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lm_trials.console import show_facts, show_pairs, show_table
from lm_trials.protocols.instructions import apply_protocol
from lm_trials.protocols.protocols import Protocol, protocol_from_dict
from lm_trials.stories.corpora import open_records
from lm_trials.stories.features import FEATURES

LEFT_OUT = "(left out by the filter)"
SEARCHED = 2000  # records in which examples are looked for, so that the time does not grow with the corpus


@contextmanager
def scratch_corpus(corpus: Path) -> Iterator[Path]:
    """Yield a temporary copy of a corpus folder, with links to its content, for the stores of a `--dry_run`."""
    with TemporaryDirectory(prefix="lm_trials-dry-run-") as folder:
        copy = Path(folder) / corpus.name
        copy.mkdir()
        for entry in corpus.iterdir():
            (copy / entry.name).symlink_to(entry.resolve())
        yield copy


def changed_examples(corpus: Path, protocol: Protocol, count: int = 3) -> list[tuple[str, str]]:
    """Return `count` texts of the train split without and with the protocol: changed ones first, and one left out."""
    plain = dataclasses.replace(protocol, filtering=(), mix_match=(), adversarial=(), refusal=(), transforms=())
    records = open_records(corpus, "train")
    batch = records[: min(SEARCHED, len(records))]
    before = apply_protocol(batch, plain)
    texts = apply_protocol(batch, protocol)
    after = dict(zip(texts["record_id"], texts["text"], strict=True))
    pairs = [(text, after.get(name, LEFT_OUT)) for name, text in zip(before["record_id"], before["text"], strict=True)]
    changed = [pair for pair in pairs if pair[1] not in (pair[0], LEFT_OUT)]
    left_out = [pair for pair in pairs if pair[1] == LEFT_OUT]
    same = [pair for pair in pairs if pair[0] == pair[1]]
    return (changed[: count - 1] + left_out[:1] + changed[count - 1 :] + same)[:count]


def describe_set(name: str, manifest: dict[str, Any], corpus: Path) -> dict[str, Any]:
    """Return the report of a set: protocol, counts by split, proportion kept, examples."""
    counts = manifest["counts"]
    examples = changed_examples(corpus, protocol_from_dict(manifest["protocol"]))
    return {
        "name": name,
        "corpus": manifest["corpus"],
        "protocol": manifest["protocol"],
        "proportion_kept": {
            split: count["kept"] / count["records"] for split, count in counts.items() if count.get("records")
        },
        "counts": counts,
        "examples": [{"before": before, "after": after} for before, after in examples],
    }


def show_set(report: dict[str, Any], examples: bool = True) -> None:
    """Print a set's report: protocol, changes, features before and after, examples."""
    protocol, counts = report["protocol"], report["counts"]
    steps = ("filtering", "mix_match", "adversarial", "refusal", "transforms")
    facts = {step: ", ".join(protocol[step]) for step in steps if protocol.get(step)}
    facts["lines shown"] = ", ".join(protocol["instruction_subset"])
    for split, count in counts.items():
        if not count.get("records"):
            facts[split] = "no stories"
            continue
        kinds = {"relabelled": "relabelled", "added": "given a feature", "refused": "refused"}
        changes = [f"{sum(count[kind].values()):,} {words}" for kind, words in kinds.items() if count[kind]]
        changes += [f"{changed:,} changed by {step}" for step, changed in count.get("transformed", {}).items()]
        changes.append(f"{count['without_sentence']:,} without a sentence line")
        kept = f"{count['kept']:,} of {count['records']:,} kept ({count['kept'] / count['records']:.1%})"
        facts[split] = f"{kept}, {count['tokens']:,} tokens; {', '.join(changes)}"
    show_facts(report["name"], facts)
    train = counts["train"]
    before, after = train["features_before"], train["features_after"]
    show_table(
        "features of the train split",
        ["feature", "in the corpus", "in the set"],
        [[feature, f"{before.get(feature, 0):,}", f"{after.get(feature, 0):,}"] for feature in FEATURES],
    )
    if examples:
        pairs = [(example["before"], example["after"]) for example in report["examples"]]
        show_pairs("examples", ("without the protocol", "in the set"), pairs)


def show_sets(reports: list[dict[str, Any]]) -> None:
    """Print one row for each of several sets: stories kept, changes, tokens of the train split."""
    rows = []
    kinds = {"relabelled": "relabelled", "added": "label added", "refused": "refused"}
    if any("transformed" in report["counts"]["train"] for report in reports):
        kinds["transformed"] = "transformed"
    for report in reports:
        train = report["counts"]["train"]
        changed = [sum(train[kind].values()) for kind in kinds]
        numbers = [train["kept"], *changed, train["tokens"]]
        rows.append([report["name"], *(f"{n:,}" for n in numbers), f"{report['proportion_kept']['train']:.1%}"])
    columns = ["set", "stories", *kinds.values(), "tokens", "kept"]
    show_table("train splits", columns, rows)
