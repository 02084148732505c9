"""A term's tokens in a prompt: in each layout, with any merge at its edges; and which prompts are compared."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import TEXT, tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import GPT2TokenizerFast, PreTrainedTokenizerFast

from lm_trials.console import UsageError
from lm_trials.latent_city.cities import folded, package_cities
from lm_trials.pairs.layouts import STORY_CHAT_TEMPLATE, chat_prompt, instruct_prompts
from lm_trials.probing.similarity.flags import SimilarityArguments
from lm_trials.probing.similarity.prompts import CITIES, VOCABULARY, PromptLayout, plan_terms

WORDS = ["cat", "dog", "fox", "mat", "a", "Zürich", "São Tomé", "x y", "jump!", "overjumps", "foo"]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def joined_tokenizer(*merges):
    """A byte-level BPE that may join anything, across words and signs, with the merges given."""
    vocab = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for one, other in merges:
        vocab[one + other] = len(vocab)
    backend = Tokenizer(models.BPE({**vocab, "</s>": len(vocab)}, list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


def told(layout, prompt, term):
    """Return the text of the term's tokens, and whether they hold more than it."""
    (found,) = layout.prompts([prompt], [term])
    return layout.tokenizer.decode(found.ids[list(found.positions)]), found.beyond


def text_of(layout, ids):
    return layout.tokenizer.decode(ids, skip_special_tokens=True).strip()


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(WORDS), st.lists(st.sampled_from(WORDS), max_size=3), st.sampled_from(["", "?", " end", "'s"]))
def test_the_tokens_of_a_term_spell_it(term, before, after):
    for layout in LAYOUTS:
        prompt = " ".join([*before, "{term}"]) + after
        (found,) = layout.prompts([prompt], [term])
        first, last = found.positions[0], found.positions[-1]
        assert list(found.positions) == list(range(first, last + 1))
        # What stands before and after the term's tokens is the rest of the prompt, and nothing of the term.
        assert text_of(layout, found.ids[: last + 1]) == " ".join([*before, term])
        assert text_of(layout, found.ids[:first]) == " ".join(before)
        assert not found.beyond


LAYOUTS = [PromptLayout(tiny_tokenizer(), mode) for mode in ("instruct", "completion")]
LAYOUTS.append(PromptLayout(joined_tokenizer(("c", "a"), ("Ġ", "ca"), ("o", "v")), "instruct"))


def test_terms_that_begin_or_end_alike_keep_what_they_share():
    """Comparing the ids of two prompts would find the last token of each alone."""
    layout = PromptLayout(joined_tokenizer(("P", "a"), ("Pa", "r")), "instruct")
    paris, parma = layout.prompts(["in {term}.", "in {term}."], ["Paris", "Parma"])
    assert [layout.tokenizer.decode(p.ids[list(p.positions)]) for p in (paris, parma)] == ["Paris", "Parma"]
    assert paris.ids[paris.positions[0]] == parma.ids[parma.positions[0]]
    assert told(layout, "{term}ris is", "Pa") == ("Par", True)


@pytest.mark.parametrize(
    ("merge", "prompt", "expected"),
    [
        (("o", "?"), "is {term}?", ("foo?", True)),
        (("Ġ", "f"), "is {term}?", (" foo", False)),
        (("s", "Ġ"), "is {term}?", ("foo", False)),
        (("d", "f"), "and{term}?", ("dfoo", True)),
        (("o", "o"), "is {term}?", ("foo", False)),
        (("?", "Ġ"), "is {term}? no", ("foo", False)),
    ],
)
def test_tokens_that_reach_beyond_the_term_are_the_terms_and_told(merge, prompt, expected):
    assert told(PromptLayout(joined_tokenizer(merge), "completion"), prompt, "foo") == expected


def test_each_layout_is_that_of_training(tokenizer):
    text, prompt = "One day, a cat sat.", "One day, a {term} sat."
    found = {mode: PromptLayout(tokenizer, mode).prompts([prompt], ["cat"])[0] for mode in ("instruct", "completion")}
    assert found["instruct"].ids.tolist() == instruct_prompts(tokenizer, [text])[0]
    body = found["instruct"].ids[1:-1].tolist()
    assert found["completion"].ids.tolist() == [tokenizer.bos_token_id, *body]
    tokenizer.chat_template = STORY_CHAT_TEMPLATE
    (chat,) = PromptLayout(tokenizer, "chat").prompts([prompt], ["cat"])
    assert chat.ids.tolist() == chat_prompt(tokenizer, [{"role": "user", "content": text}])
    # Ours is the instruct layout; its end is the BOS that asks for an answer, and the term is where it was.
    assert chat.ids.tolist() == found["instruct"].ids.tolist()
    assert chat.positions == found["instruct"].positions == found["completion"].positions


CHAT = "{{ eos_token }}You know what a cat is.\n{{ messages[0]['content'] | trim }}\nThe cat says: "


def test_a_chat_template_may_name_the_term_and_strip_the_prompt(tokenizer):
    tokenizer.chat_template = CHAT
    layout = PromptLayout(tokenizer, "chat")
    for prompt in ("a {term} sat", "  a {term} sat \n", "{term} sat"):
        (found,) = layout.prompts([prompt], ["cat"])
        assert tokenizer.decode(found.ids[list(found.positions)]).strip() == "cat"
        before = tokenizer.decode(found.ids[: found.positions[0]])
        assert before.count("cat") == 1  # the template's own


def test_a_prompt_that_cannot_be_read_is_refused(tokenizer):
    tokenizer.chat_template = STORY_CHAT_TEMPLATE
    with pytest.raises(UsageError, match="contains a control token"):
        PromptLayout(tokenizer, "chat").prompts(["</s> a {term}"], ["cat"])
    PromptLayout(tokenizer, "instruct").prompts(["</s> a {term}"], ["cat"])  # where it is text as any other
    tokenizer.chat_template = "{{ messages[0]['content'] | upper }}"
    with pytest.raises(UsageError, match="changes 'a cat'; give --prompt_layout instruct"):
        PromptLayout(tokenizer, "chat").prompts(["a {term}"], ["cat"])
    deaf = joined_tokenizer()
    deaf.backend_tokenizer.normalizer = normalizers.Replace("foo", "")
    with pytest.raises(UsageError, match="'foo' has no token in 'a foo b'"):
        PromptLayout(deaf, "instruct").prompts(["a {term} b"], ["foo"])


def test_real_tokenizers_give_terms_their_tokens(shared_data):
    tokenizer = GPT2TokenizerFast.from_pretrained(shared_data / "gpt2_tokenizer")
    layout = PromptLayout(tokenizer, "completion")
    prompt = "What is the distance between Oslo and {term}?"
    cities = [city.name for city in package_cities(None, 500_000)[0]]
    for city, found in zip(cities, layout.prompts([prompt] * len(cities), cities), strict=True):
        assert tokenizer.decode(found.ids[list(found.positions)]) == f" {city}"
        assert not found.beyond


def planned(tokenizer, window=64, seed=0, **flags):
    args = SimilarityArguments(**{"term_a": "cat", "term_b": "dog", "candidate_tokens": "any", **flags})
    return plan_terms(PromptLayout(tokenizer, "instruct"), args, seed, window)


LETTERS = list("abcdefghijklmnopqrstuvwxyz")


def test_a_plan_has_each_pair_with_each_candidate(tokenizer):
    prompts = ["a {city} and a {term}", "{term} or {city}"]
    plan = planned(tokenizer, template=prompts, query=["mat", "cat", "fox"], candidates=[*LETTERS, "mat", "dog"])
    assert plan.queries == ("mat", "fox")  # a term is none
    assert plan.candidates == ("dog", *LETTERS)  # nor is a query a candidate, nor the true term twice
    assert plan.families == {"other candidates": tuple(range(1, 27))}
    assert [number for number, _ in plan.pairs] == [0, 0, 1, 1]
    assert plan.sampled == "2 queries"
    decoded = [tokenizer.decode(prompt.ids, skip_special_tokens=True).strip() for prompt in (*plan.own, *plan.others)]
    assert decoded[:4] == ["a mat and a cat", "cat or mat", "a fox and a cat", "cat or fox"]
    assert decoded[4:6] == ["a mat and a dog", "a mat and a a"]
    assert decoded[4 + 27] == "dog or mat"
    assert len(plan.others) == 4 * 27
    rows = plan.tokens(tokenizer, "last")
    assert [(row["term"], row["kind"]) for row in rows[:3]] == [
        ("cat", "term"),
        ("dog", "true term"),
        ("a", "other candidates"),
    ]
    assert rows[0]["compared"] == rows[0]["tokens"].split()[-1]


def test_prompts_without_a_city_are_the_sample(tokenizer):
    plan = planned(tokenizer, template=["a cat sat", "the {term} jumps"], candidates=LETTERS)
    assert plan.sampled == "2 prompts"
    assert [tokenizer.decode(p.ids, skip_special_tokens=True).strip() for p in plan.own] == [
        "a cat sat",
        "the cat jumps",
    ]


def test_capitals_are_queries_or_candidates_and_never_both(tokenizer):
    flags = {"term_a": "foo", "term_b": "Paris", "num_queries": 10, "template": SimilarityArguments().template}
    plan = planned(tokenizer, 200, **flags)
    capitals = {city.name for city in package_cities(None, 500_000)[0]}
    assert len(plan.queries) == 10
    assert len(plan.candidates) == len(capitals) - 10
    assert {*plan.queries, *plan.candidates} == capitals
    assert planned(tokenizer, 200, **flags).queries == plan.queries
    assert planned(tokenizer, 200, seed=1, **flags).queries != plan.queries
    num_tokens = [len(prompt.positions) for prompt in plan.others[: len(plan.candidates)]]
    usual = plan.candidates[num_tokens.index(max(set(num_tokens), key=num_tokens.count))]
    same = planned(tokenizer, 200, **{**flags, "term_b": usual, "candidate_tokens": "same"})
    lengths = {len(prompt.positions) for prompt in same.others}
    assert len(lengths) == 1
    assert same.left_out + len(same.candidates) == len(plan.candidates)
    assert list(same.families) == [CITIES]


def test_words_of_the_vocabulary_are_one_token_each(tokenizer):
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghij"), size=4)) for _ in range(60)]
    from lm_trials.tokens.tokenizers import train_tokenizer

    rich = train_tokenizer([TEXT] * 9 + [" ".join(words)] * 9, vocab_size=700)
    flags = {"template": ["a {term} sat", "The {term}?"], "vocabulary_sample": 25}
    plan = planned(rich, **flags)
    drawn = [plan.candidates[place] for place in plan.families[VOCABULARY]]
    assert list(plan.families) == [VOCABULARY]
    assert len({folded(word) for word in drawn}) == 25
    assert not {"cat", "dog"} & set(drawn)
    assert {len(prompt.positions) for prompt in plan.others} == {1}
    assert planned(rich, **flags).candidates == plan.candidates
    assert planned(rich, seed=1, **flags).candidates != plan.candidates
    with pytest.raises(UsageError, match=r"--vocabulary_sample 5000: the vocabulary has only \d+ words of one token"):
        planned(rich, template=["a {term} sat"], vocabulary_sample=5000)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"query": ["cat", "dog"], "template": ["{city} {term}"], "candidates": LETTERS}, "contains only the terms"),
        ({"query": ["fox"], "template": ["a {term}"], "candidates": LETTERS}, "no --template has {city}"),
        ({"template": ["a {term}"], "candidates": LETTERS[:5]}, "5 other candidates are too few for p = 0.05; give 19"),
        ({"template": ["a {term}"]}, "--term_b dog is not a known city"),
        (
            {"template": ["a {term}"], "candidates": [f"x{b}!" for b in "qwkjabcdefgh"], "candidate_tokens": "same"},
            "12 more have another number of tokens than dog; give 19 or more, or --candidate_tokens any",
        ),
        ({"template": ["a {term}"], "candidates": LETTERS, "term_a": "dog "}, "have the same tokens"),
        ({"template": ["a {term} " + "sat " * 80], "candidates": LETTERS}, "tokens and the model reads 64"),
        ({"num_queries": 500, "term_b": "Paris"}, "--num_queries 500: only 128 capitals"),
    ],
)  # fmt: skip
def test_what_makes_no_plan_is_refused(flags, message, tokenizer):
    with pytest.raises(UsageError) as raised:
        planned(tokenizer, **flags)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
