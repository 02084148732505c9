"""Metrics of a text are those of textstat, NLTK and textblob, and of a user's function; each mistake is one line."""

import json
import math
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from pyphen import Pyphen
from textblob import TextBlob

from lm_trials.console import UsageError
from lm_trials.data.datasets import Text
from lm_trials.metrics.texts import (
    COMPLEX,
    Measures,
    SyllableCounts,
    UserMetric,
    bleu,
    parse_metrics,
    read_words,
    syllable_counts,
    text_metrics,
)
from lm_trials.stories.generated.generator import generate_stories

STORIES = [story["story"] for story in generate_stories(40, seed=3)]
METRICS = Measures(sentiment=False)


def test_readability_is_that_of_textstat():
    """textstat 0.7.13 with our copy of CMUdict, in an environment of its own: it installs a package called `tests`."""
    expected = json.loads((Path(__file__).parents[1] / "golden/textstat.json").read_text(encoding="utf-8"))
    found = text_metrics([row["text"] for row in expected], measures=METRICS)
    for name in ("words", "sentences", "flesch_kincaid_grade", "gunning_fog"):
        assert found[name].tolist() == [row[name] for row in expected]
    assert len({*found["gunning_fog"]}) > len(expected) / 2


def test_syllables_are_those_of_the_dictionary_and_not_hyphens():
    known = {"the": 1, "little": 2, "banana": 3, "queue": 1, "fire": 2, "rhythm": 2, "electricity": 5, "don't": 1}
    assert {word: syllable_counts()[word] for word in known} == known
    hyphens = Pyphen(lang="en_US")
    assert any(len(hyphens.positions(word)) + 1 != count for word, count in known.items())
    assert syllable_counts()["zblorfgar"] == len(hyphens.positions("zblorfgar")) + 1
    assert len(SyllableCounts()) == 123_933


def test_easy_words_are_not_complex_whatever_their_syllables():
    easy, other = text_metrics(["Grandmother saw Tom.", "Imaginative saw Tom."], measures=METRICS)["gunning_fog"]
    assert syllable_counts()["grandmother"] >= COMPLEX
    assert [easy, other] == pytest.approx([0.4 * 3, 0.4 * (3 + 100 / 3)])


def nltk_bleu(reference, text):
    return sentence_bleu([reference.split()], text.split(), smoothing_function=SmoothingFunction().method1)


FEW_WORDS = st.lists(st.sampled_from("abc"), min_size=1, max_size=9).map(" ".join)


@given(FEW_WORDS, FEW_WORDS)
def test_bleu_is_that_of_nltk(reference, text):
    assert bleu(reference, text) == nltk_bleu(reference, text)


def test_bleu_of_stories_is_that_of_nltk_and_differs_between_references():
    reference = STORIES[0]
    assert [bleu(reference, text) for text in STORIES] == [nltk_bleu(reference, text) for text in STORIES]
    assert bleu(reference, reference) == 1
    assert bleu(reference, STORIES[1]) != bleu(STORIES[2], STORIES[1])
    prompted = text_metrics(STORIES[:2], [reference, ""], METRICS)["bleu_score"]
    assert prompted[0] == 1
    assert np.isnan(prompted[1])
    fixed = text_metrics(STORIES[:2], measures=Measures(sentiment=False, reference=reference))["bleu_score"]
    assert fixed.tolist() == [1, bleu(reference, STORIES[1])]


def test_sentiment_is_that_of_textblob():
    found = text_metrics(STORIES[:8])
    expected = [TextBlob(text).sentiment for text in STORIES[:8]]
    assert found["sentiment_score"].tolist() == [score.polarity for score in expected]
    assert found["subjectivity_score"].tolist() == [score.subjectivity for score in expected]
    assert len({*found["sentiment_score"]}) > 4
    assert "sentiment_score" not in text_metrics(STORIES[:1], measures=METRICS)


def test_vocabulary_and_flagged_words_are_shares_of_the_words(tmp_path):
    (tmp_path / "list.txt").write_text("# mine\nCAT\n\n")
    measures = Measures(read_words(tmp_path / "list.txt", "--flagged_words"), sentiment=False)
    text = 'The cat, the dog; "Cat!" said concat.'
    assert text_metrics([text], measures=measures)["flagged_words"] == 2 / 7
    assert text_metrics([text], measures=METRICS)["flagged_words"] == 0
    assert text_metrics([text], measures=METRICS)["vocabulary_diversity"] == 5 / 7


def test_a_text_without_words_has_no_ratios():
    found = text_metrics(["...", ""], measures=METRICS)
    for name in ("sentence_length", "flesch_kincaid_grade", "gunning_fog", "vocabulary_diversity", "flagged_words"):
        assert np.isnan(found[name]).all()
    assert found["words"].tolist() == [0, 0]


def test_features_are_zero_or_one():
    found = METRICS.measure([Text("a", "Hi.", "", ["Twist"]), Text("b", "Hi.", "", [])])
    assert found["feature_Twist"].tolist() == [1, 0]
    assert found["feature_Dialogue"].tolist() == [0, 0]


def test_the_description_changes_with_what_determines_a_metric_and_only_there():
    base = Measures().described()

    def changed(**settings):
        other = Measures(**settings).described()
        return {name for name in base | other if base.get(name) != other.get(name)}

    assert changed(flagged=frozenset(["cat"])) == {"flagged_words"}
    assert changed(reference="One day") == {"bleu_score"}
    assert changed(sentiment=False) == {"sentiment_score", "subjectivity_score"}
    assert changed(functions=(UserMetric("a/mine.py", "f", "12"),)) == {"f"}
    assert changed() == set()


MINE = """
import math
def vowels(text):
    return sum(map(text.count, "aeiou"))
def nothing(text):
    return math.nan if "dog" in text else 1
def late(text):
    return 1 / text.count("cat")
def words_of(text):
    return text.split()
value = 3
"""


@pytest.fixture
def mine(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path / "mine.py"


def test_a_users_function_is_a_metric(mine):
    (metric,) = parse_metrics([f"{mine}:vowels"])
    measures = pickle.loads(pickle.dumps(Measures(sentiment=False, functions=(metric,))))  # as workers get it
    assert text_metrics(["a cat", "be"], measures=measures)["vowels"].tolist() == [2, 1]
    about = measures.described()["vowels"]
    assert about["function"] == "mine.py:vowels"
    mine.write_text(MINE + "# changed\n")
    assert parse_metrics([f"{mine}:vowels"])[0].sha256 != about["sha256"]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("nothing", r"mine.py:nothing returns nan for record two \('a dog' ...\); let it return a finite number"),
        ("late", "mine.py:late raises ZeroDivisionError: division by zero for record two"),
        ("words_of", "mine.py:words_of raises .* for record one"),
    ],
)
def test_a_function_that_fails_names_the_record(mine, function, message):
    texts = [Text("one", "a cat", "", []), Text("two", "a dog", "", [])]
    with pytest.raises(UsageError, match=message):
        Measures(sentiment=False, functions=parse_metrics([f"{mine}:{function}"])).measure(texts)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["{}:nosuch"], "has no function nosuch"),
        (["{}:value"], "has no function value"),
        (["{}"], "it is not FILE.py:function"),
        (["{}:words"], "the name words is taken"),
        (["nosuch.py:f"], "--metric nosuch.py cannot be read"),
        (["{}:vowels", "{}/../mine.py:vowels"], "two functions are called vowels"),
    ],
)
def test_a_wrong_metric_is_one_line(mine, given, message):
    (mine.parent / "d").mkdir()
    with pytest.raises(UsageError, match=message):
        parse_metrics([each.format(mine).replace("mine.py/..", "d/..") for each in given])


def test_a_file_that_raises_is_named(tmp_path):
    (tmp_path / "mine.py").write_text("import nosuchmodule\n")
    with pytest.raises(UsageError, match=r"mine.py raises ModuleNotFoundError: No module named 'nosuchmodule'"):
        parse_metrics([f"{tmp_path / 'mine.py'}:f"])


@pytest.mark.parametrize(
    ("text", "message"), [("# none\n", "has no word"), ("two words\n", "has 'two words', which is no")]
)
def test_a_wrong_list_of_words_is_one_line(tmp_path, text, message):
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(UsageError, match=f"--flagged_words .*list.txt {message}"):
        read_words(tmp_path / "list.txt", "--flagged_words")


def test_metrics_do_not_depend_on_the_other_texts_of_a_batch():
    shuffled = random.Random(0).sample(STORIES, len(STORIES))
    together = dict(zip(shuffled, text_metrics(shuffled, measures=METRICS)["gunning_fog"], strict=True))
    assert [together[text] for text in STORIES] == text_metrics(STORIES, measures=METRICS)["gunning_fog"].tolist()
    assert math.isfinite(sum(together.values()))
