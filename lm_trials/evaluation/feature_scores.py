"""Feature scores: whether a model's stories have the features that the prompts ask for, by the feature detectors.

The detectors are exact on generated stories (precision and recall 1.0); on other prose the scores are a lower bound.
With `--judge_url` a language model judges instead, and its agreement with the detectors is reported.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lm_trials.console import note, show_table
from lm_trials.data.datasets import Selection
from lm_trials.estimates import bootstrap_mean, interval_text, proportion
from lm_trials.evaluation.checkpoints import Candidate
from lm_trials.evaluation.flags import EvaluationArguments
from lm_trials.evaluation.generation import write_stories
from lm_trials.evaluation.inflections import StoryWords
from lm_trials.evaluation.judges import agreement
from lm_trials.evaluation.remote_judge import RemoteJudge
from lm_trials.files import write_csv, write_file, write_json
from lm_trials.protocols.protocols import LINES
from lm_trials.protocols.set_texts import SetText
from lm_trials.stories.features import FEATURES
from lm_trials.stories.generated.detectors import detect_features
from lm_trials.tokens.stores import document_marks
from lm_trials.tokens.tokenizers import batch_encoder

# A model may continue with another example; the story ends before that example's first instruction line.
LABEL = f"(?:{'|'.join(LINES)}):"
# Only at the start of a line: a story may contain a colon after such a word inside a sentence.
NEXT_EXAMPLE = re.compile(rf"(?:^|\n){LABEL}")
# Does not change results: each story has its own random draws, by its record id. Not tuned.
BATCH = 32
ENOUGH = 256  # at 256 prompts a 95 % interval of a share is at most 0.12 wide


@dataclass(frozen=True)
class Generation:
    """A story generated for a prompt, under the column names of tinystories-wrappers.

    Attributes:
        prefix: the prompt with special tokens; clean_prefix: without.
        generation: up to BOS, EOS or the next instruction line.
        target: the set's own story.
        features, words: those that the prompt asks for.
    """

    record_id: str
    prefix: str
    clean_prefix: str
    generation: str
    target: str
    features: tuple[str, ...]
    words: tuple[str, ...]


def cut_story(text: str) -> str:
    """Return the text before the first instruction line of another example.

    >>> cut_story(" Tim ran.\\nHe fell.\\nWords: go, cat\\nStory: Sue")
    'Tim ran.\\nHe fell.'
    """
    return NEXT_EXAMPLE.split(text, maxsplit=1)[0].strip()


def next_example_begins(tail: str) -> bool:
    """Return whether an instruction line of another example begins in the last tokens.

    >>> [next_example_begins(text) for text in ("went home.\\nWords:", "Important Words:", " ran\\nTim said: go")]
    [True, False, False]
    """
    return re.search(rf"\n{LABEL}", tail) is not None


def write_generations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[SetText],
    max_new_tokens: int,
    temperature: float = 1.0,
    seed: int = 0,
    description: str | None = None,
) -> list[Generation]:
    """Generate a story for each prompt (see `write_stories`); its draws depend on the seed and the record's id."""
    bos, _ = document_marks(tokenizer, append_eos=False)
    prompts = [bos + ids for ids in batch_encoder(tokenizer)([text.prompt for text in texts])]
    written = write_stories(
        model, tokenizer, prompts, [max_new_tokens] * len(prompts), temperature, seed=seed, batch_size=BATCH,
        ended=next_example_begins, keys=[text.record_id for text in texts], by_length=True, description=description,
    )  # fmt: skip
    return [
        Generation(
            text.record_id,
            str(tokenizer.decode(prompt)),
            text.prompt,
            cut_story(str(tokenizer.decode(story, skip_special_tokens=True))),
            text.story,
            tuple(text.features),
            tuple(text.words),
        )
        for text, prompt, story in zip(texts, prompts, written, strict=True)
    ]


def detected(generations: Sequence[Generation]) -> list[dict[str, bool]]:
    """Return for each story whether the detectors find each feature."""
    found = [detect_features(generation.generation) for generation in generations]
    return [{feature: feature in of for feature in FEATURES} for of in found]


def score_features(
    generations: Sequence[Generation], seed: int = 0, verdicts: Sequence[Mapping[str, bool | None]] | None = None
) -> list[dict[str, Any]]:
    """Return the share of stories with each feature, if asked for and if not, and the share of words used.

    Args:
        verdicts: for each story whether it has each feature; None is unknown and left out. Default: the detectors'.

    Returns:
        Rows of slice, metric, estimate, lower, upper, n, unit; a slice without stories has no row.
    """
    judged = list(zip(verdicts or detected(generations), generations, strict=True))
    rows = []
    for feature in FEATURES:
        for sign, asked in (("=", True), ("!=", False)):
            answers = [verdict[feature] for verdict, g in judged if (feature in g.features) is asked]
            has = [answer for answer in answers if answer is not None]
            if has:
                # Wilson's interval: a bootstrap of a share that no story has is [0, 0], as after a complete deletion.
                estimate = proportion(sum(has), len(has), "share of stories")
                rows.append({"slice": f"asked{sign}{feature}", "metric": f"has_{feature}", **estimate.row()})
    used = [words_used(generation) for generation in generations if generation.words]
    if used:
        estimate = bootstrap_mean(np.array(used), "share of words", seed, scale="logit")
        rows.append({"slice": "all", "metric": "words_used", **estimate.row()})
    return rows


def score_judge(
    verdicts: Sequence[Mapping[str, bool | None]], others: Sequence[Mapping[str, bool]]
) -> list[dict[str, Any]]:
    """Compare a judge with the detectors, feature by feature, and count its answers that are neither Yes nor No.

    Returns:
        Rows as `score_features` returns them, of the metrics unparseable_, agreement_ and kappa_<feature>.
    """
    rows = []
    for feature in FEATURES:
        pairs = [(v[feature], o[feature]) for v, o in zip(verdicts, others, strict=True) if v[feature] is not None]
        estimates = {"unparseable": proportion(len(verdicts) - len(pairs), len(verdicts), "share of stories")}
        if pairs:
            estimates["agreement"], estimates["kappa"] = agreement(*np.array(pairs, dtype=bool).T)
        rows += [{"slice": "all", "metric": f"{name}_{feature}", **e.row()} for name, e in estimates.items()]
    return rows


def words_used(generation: Generation) -> float:
    """Return the share of the requested words that the story has in any form (`inflections.forms_of`).

    >>> round(words_used(Generation("", "", "", "The cart carried a balloon.", "", (), ("car", "ball", "carry"))), 3)
    0.333
    """
    return StoryWords(generation.generation).share_used(generation.words) or 0.0


def check_prompts(datasets: Sequence[Selection], args: EvaluationArguments) -> None:
    """Check that `--score_features` has prompts, before anything is evaluated.

    Raises:
        UsageError: for a data set without prompts.
    """
    for dataset in datasets if args.score_features else ():
        dataset.prompts(1)


def score_set(
    model: PreTrainedModel,
    candidate: Candidate,
    dataset: Selection,
    folder: Path,
    args: EvaluationArguments,
    judge: RemoteJudge | None = None,
) -> list[dict[str, Any]]:
    """Generate stories for a set's prompts and score their features; writes the stories and two tables.

    Args:
        judge: instead of the detectors.

    Returns:
        Rows of model, step, seed, dataset, judge, slice, metric, estimate, lower, upper, n, unit.
    """
    # A judge can fail: no scores of another judge may then lie beside the settings of this evaluation.
    (folder / "feature_scores.csv").unlink(missing_ok=True)
    texts = dataset.prompts(args.num_generations)
    if len(texts) < args.num_generations:
        note(f"note: {dataset.name} has {len(texts)} stories, fewer than --num_generations {args.num_generations}")
    # 1.0 samples the model's own distribution, whose share of stories with a feature is the quantity of interest; a
    # lower temperature would measure its mode.
    temperature = 1.0 if args.temperature is None else args.temperature
    reference = candidate.reference
    title = f"{Path(reference.path).name} on the prompts of {dataset.name}"
    generations = write_generations(
        model, candidate.tokenizer, texts, args.max_new_tokens, temperature, args.seed, title
    )
    by = judge.model if judge else "detectors"
    shared = {"model": reference.name, "step": reference.step, "seed": candidate.seed, "dataset": dataset.name}
    stories = [asdict(generation) for generation in generations]
    verdicts = judge.verdicts([generation.generation for generation in generations]) if judge else None
    scored = score_features(generations, args.seed, verdicts)
    if verdicts:
        scored += score_judge(verdicts, detected(generations))
        stories = [{**story, "verdicts": verdict} for story, verdict in zip(stories, verdicts, strict=True)]
    rows = [{**shared, "judge": by, **row} for row in scored]
    write_csv(folder / "feature_scores.csv", rows)
    write_json(folder / "feature_scores.json", {"temperature": temperature, "rows": rows})
    write_file(folder / "generations.parquet", lambda place: pq.write_table(pa.Table.from_pylist(stories), place))
    few = [row["slice"] for row in rows if row["slice"].startswith("asked=") and row["n"] < ENOUGH]
    if few:
        note(f"note: fewer than {ENOUGH} prompts for {', '.join(few)}; raise --num_generations or prepare more stories")
    # Of the rows of all stories, the words'; the judge's own have a table of their own.
    found = {row["slice"]: row for row in rows if row["slice"] != "all" or row["metric"] == "words_used"}
    cells = [[name, *(_shown(found.get(f"asked{sign}{name}")) for sign in ("=", "!="))] for name in FEATURES]
    if "all" in found:
        cells.append(["words used", _shown(found["all"]), ""])
    show_table(
        f"{title}, judged by {by}" if judge else title,
        ["feature", "share of stories,\nasked for", "share of stories,\nnot asked for"],
        cells,
        "[95 % interval over stories], n = stories",
    )
    if judge:
        _show_judge(by, {row["metric"]: row for row in rows})
    note(f"stories and scores: {folder}/generations.parquet, feature_scores.csv")
    return rows


def _show_judge(name: str, found: Mapping[str, dict[str, Any]]) -> None:
    def cell(metric: str) -> str:
        row = found.get(metric)
        if row is None:
            return "no answer"
        if math.isnan(row["estimate"]):
            return "undefined"
        return f"{row['estimate']:z.3f} {interval_text(row['lower'], row['upper'])}"

    lost = {feature: found[f"unparseable_{feature}"] for feature in FEATURES}
    show_table(
        f"agreement of {name} with the detectors",
        ["feature", "judged alike", "Cohen's kappa", "unparseable"],
        [
            [
                feature,
                cell(f"agreement_{feature}"),
                cell(f"kappa_{feature}"),
                f"{round(row['estimate'] * row['n'])} of {row['n']}",
            ]
            for feature, row in lost.items()
        ],
        "[95 % interval over stories]; unparseable answers are neither Yes nor No and left out",
    )


def _shown(row: dict[str, Any] | None) -> str:
    if row is None:
        return "no prompt"
    return f"{row['estimate']:.3f} [{row['lower']:.3f}, {row['upper']:.3f}] n={row['n']}"
