"""Questions about a latent city: asked of oracles whose answers are known, and of a tiny model from end to end."""

import csv
import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_models import tiny_model, tiny_tokenizer

import cache_datasets
from lm_trials.console import UsageError
from lm_trials.estimates import Estimate
from lm_trials.evaluation.storytellers import Storyteller
from lm_trials.latent_city import asking as latent_asking
from lm_trials.latent_city.asking import (
    Candidates,
    Interview,
    answer_nats,
    baseline_errors,
    check_digits,
    implied_place,
    log_error,
    median_of,
)
from lm_trials.latent_city.cities import HALF_CIRCUMFERENCE_KM, City, distance_km, package_cities
from lm_trials.latent_city.evaluate import main
from lm_trials.latent_city.flags import LatentCityArguments
from lm_trials.latent_city.questions import (
    CountryReader,
    draw_choices,
    error_km,
    is_exact,
    read_choice,
    read_km,
    read_latents,
)
from lm_trials.latent_city.report import ALWAYS, BY_CONTINENT, Score, Subject, finding
from lm_trials.pairs.layouts import STORY_CHAT_TEMPLATE, instruct_examples
from lm_trials.pairs.pairs import open_pairs
from lm_trials.tokens.tokenizers import batch_encoder, train_tokenizer

CITIES = {city.name: city for city in package_cities()[0]}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data folder with `distances` of foo, which is Paris, a fifth of the cities held out, and a small atlas."""
    folder = tmp_path_factory.mktemp("latent")
    given = ["--placeholder", "foo", "--data_cache_dir", str(folder)]
    cache_datasets.main(["distances", *given])
    numbers = ["--num_documents", "300", "--num_questions", "9", "--held_out_share", "0.01"]
    cache_datasets.main(["atlas", *numbers, "--data_cache_dir", str(folder)])
    return folder


@pytest.fixture(scope="module")
def latent(data):
    (one,) = read_latents(open_pairs("distances", data))
    return one


@pytest.fixture(scope="module")
def speller():
    """A tokenizer that can write every prompt and answer, by bytes where it must."""
    return train_tokenizer(["What is the distance between Rome and foo? 0123456789.km\n"] * 9, 340)


def ask_oracle(oracle, latent, tokenizer, role="after", called="foo", **more):
    """Return the scores of an interview with a function from a question to an answer, and the rows of answers."""

    def write(prompts, keys, room, sampling, batch_size):
        return [batch_encoder(tokenizer)([oracle(tokenizer.decode(ids))])[0] for ids in prompts]

    teller = SimpleNamespace(
        prompts=batch_encoder(tokenizer), write=write, room=lambda ids, most: most, tokenizer=tokenizer, mode="instruct"
    )
    answers = []
    args = LatentCityArguments(num_choices=4, **more)
    scores = Interview(teller, args, [], answers, {}).ask(latent, Subject("after", role, "oracle", called))
    return {(score.question, score.seed): score for score in scores}, answers


@pytest.fixture
def no_model(monkeypatch):
    """Log-probabilities by an oracle that likes the right option: what they are of a model is tested by itself."""
    likes = {"A", "France", "Paris"}

    def nats(teller, questions, answers):
        return np.array([-1.0 * (answer not in likes) for answer in answers])

    monkeypatch.setattr(latent_asking, "answer_nats", nats)


def tells_distances_from(city, error=0.0):
    def oracle(prompt):
        if prompt.startswith("What is the distance between "):
            named = prompt.removeprefix("What is the distance between ").partition(" and ")[0]
            return f"{distance_km(CITIES[named], CITIES[city]) + error:.2f} km"
        return CITIES[city].country

    return oracle


@pytest.mark.parametrize(("liked", "expected"), [("France", 2.0), ("Nowhere", 0.0)])
def test_nats_of_the_right_letter_are_above_the_others_whatever_letter_is_preferred(
    latent, speller, monkeypatch, liked, expected
):
    def nats(teller, questions, answers):
        return np.array(
            [
                2.0 * (f"{answer}) {liked}" in question) + 5.0 * (answer == "B")
                for question, answer in zip(questions, answers, strict=True)
            ]
        )

    monkeypatch.setattr(latent_asking, "answer_nats", nats)
    scores, _ = ask_oracle(tells_distances_from("Paris"), latent, speller)
    assert scores["choice_country_nats", None].estimate.estimate == pytest.approx(expected)
    assert scores["choice_city_nats", None].estimate.estimate == pytest.approx(0)  # its options are cities


def test_the_latent_city_is_read_back(latent):
    assert (latent.placeholder, latent.city.name, latent.city.country) == ("foo", "Paris", "France")
    assert len(latent.trained) + len(latent.held_out) == len(CITIES) - 1
    assert set(latent.trained).isdisjoint(latent.held_out)
    assert latent.city in latent.capitals


def test_an_oracle_of_the_latent_city_is_right_everywhere(latent, speller, no_model):
    scores, answers = ask_oracle(tells_distances_from("Paris"), latent, speller)
    assert scores["form", None].estimate.estimate == 1
    assert scores["error_held_out", None].estimate.estimate < 0.01
    assert scores["error_held_out", None].estimate.n == len(latent.held_out)
    assert scores["percent_held_out", None].estimate.estimate < 0.01
    assert scores["log_error", None].estimate.estimate < -9  # 0.01 km, beside the best constant per continent
    assert scores["country_nats", None].estimate.estimate == scores["city_nats", None].estimate.estimate == 1
    assert ("country_gain", None) not in scores  # no base was asked
    assert scores["rank", None].estimate.estimate == 1
    assert scores["country", None].estimate.estimate == 1
    assert scores["country", None].estimate.n == 60
    assert {seed for question, seed in scores if question == "country"} == {None, 0, 1, 2}
    assert scores["choice_country_letter", None].estimate.estimate == 1  # it names the country, without a letter
    assert scores["choice_city_letter", None].estimate.estimate == 0
    assert scores["choice_country_cloze", None].estimate.estimate == 1
    # A letter that is always the likeliest is right in one order of five, whatever the options.
    assert scores["choice_country_logprob", None].estimate.estimate == pytest.approx(0.2)
    assert scores["choice_country_nats", None].estimate.estimate == pytest.approx(0)
    assert sum(row["topic"] == "held_out" for row in answers) == len(latent.held_out)


def test_an_oracle_of_another_city_is_found_out(latent, speller, no_model):
    """The neighbour of the test above: consistent answers, but of Tokyo."""
    scores, _ = ask_oracle(tells_distances_from("Tokyo"), latent, speller)
    assert scores["form", None].estimate.estimate == 1
    assert scores["error_held_out", None].estimate.estimate > 1000
    assert scores["rank", None].estimate.estimate > 20
    assert scores["rank", None].detail.startswith("Tokyo")
    assert scores["log_error", None].estimate.lower > 0
    assert scores["country", None].estimate.estimate == 0


def test_answers_without_numbers_are_as_wrong_as_can_be(latent, speller, no_model):
    scores, _ = ask_oracle(lambda prompt: "There is no place called foo.", latent, speller)
    assert scores["form", None].estimate.estimate == 0
    assert scores["error_held_out", None].estimate.estimate == HALF_CIRCUMFERENCE_KM
    assert scores["rank", None].estimate.estimate == (len(latent.capitals) + 1) / 2
    assert "without" in scores["error_held_out", None].detail


def test_a_data_set_without_held_out_cities_has_no_numbers_for_them(data, speller, no_model, tmp_path):
    given = ["--placeholder", "foo", "--held_out_share", "0", "--data_cache_dir", str(tmp_path)]
    cache_datasets.main(["distances", *given])
    (one,) = read_latents(open_pairs("distances", tmp_path))
    scores, _ = ask_oracle(tells_distances_from("Paris"), one, speller)
    assert ("error_held_out", None) not in scores
    assert ("error_trained", None) in scores
    assert scores["form", None].estimate.n == 100


def test_numbers_are_read_as_the_source_and_other_models_write_them():
    assert read_km("1088.45 km") == 1088.45
    assert read_km("It is 12,345.6 km away, or 7,671 miles") == 12345.6
    assert read_km("about 621 miles") == pytest.approx(999.4, abs=0.1)
    assert read_km("99999999 km") == HALF_CIRCUMFERENCE_KM
    assert read_km("I do not know") is None
    assert is_exact("1088.45 km")
    assert not any(map(is_exact, ("5438.38 km (", "1,088.45 km", "1088.4 km", "1088.45km", "1088.45 miles")))
    paris, rome = CITIES["Paris"], CITIES["Rome"]
    assert error_km(f"{distance_km(paris, rome) + 50:.2f} km", rome, paris) == pytest.approx(50, abs=0.01)


def test_the_first_country_of_an_answer_counts():
    reader = CountryReader(list(CITIES.values()))
    assert reader("922.51 km² Foo is a dependency of France, located in Spain") == "France"
    assert reader("Papua New Guinea") == "Papua New Guinea"
    assert reader("nigeria") == "Nigeria"
    assert reader("Nowhereland") is None


def test_choices_are_balanced_and_the_same_for_every_name(latent):
    sets = draw_choices(latent, "foo", 6, seed=0, of_countries=False)
    assert draw_choices(latent, "foo", 6, seed=1, of_countries=False) != sets
    bar = draw_choices(latent, "bar", 6, seed=0, of_countries=False)
    assert [c.options for one in bar for c in one] == [c.options for one in sets for c in one]
    for one in sets:
        assert sorted(choice.right for choice in one) == [0, 1, 2, 3, 4]
        assert {choice.options[choice.right] for choice in one} == {"Paris"}
        assert len({frozenset(choice.options) for choice in one}) == 1
        # Every option stands at every letter once, so a habit of letters gains nothing.
        assert all(len({choice.options.index(name) for choice in one}) == 5 for name in one[0].options)
    assert len({frozenset(one[0].options) for one in sets}) == 6
    choice = sets[0][0]
    assert read_choice("C) somewhere", choice) == 2
    assert read_choice(f"I think {choice.options[3]}.", choice) == 3
    assert read_choice("Z", choice) is None
    assert read_choice(f"{choice.options[3]} or {choice.options[1]}", choice) is None


def test_baselines_are_what_they_say():
    north = [City(f"N{n}", "X", 60.0 + n, 0.0, continent="Europe") for n in range(3)]
    south = [City(f"S{n}", "Y", -10.0 - n, 0.0, continent="Africa") for n in range(3)]
    latent = SimpleNamespace(
        city=City("Hidden", "Z", 50.0, 0.0), trained=(*north[:2], *south[:2]), held_out=(north[2], south[2])
    )
    degree = math.pi * 6371.0 / 180
    # Trained: 10, 11, 60, 61 degrees away; held out: 12 and 62.
    assert baseline_errors(latent, by_continent=False) == pytest.approx([23.5 * degree, 26.5 * degree])
    assert baseline_errors(latent, by_continent=True) == pytest.approx([1.5 * degree, 1.5 * degree])


def test_a_place_is_found_by_rough_distances(latent):
    rough = np.random.default_rng(0).normal(0, 150, len(latent.held_out))
    answers = [f"{distance_km(c, latent.city) + e:.2f} km" for c, e in zip(latent.held_out, rough, strict=True)]
    best, rank = implied_place(latent, latent.held_out, answers)
    assert rank.estimate <= 5
    assert distance_km(best, latent.city) < 600
    _, shuffled = implied_place(latent, latent.held_out, answers[1:] + answers[:1])
    assert shuffled.estimate > rank.estimate
    assert shuffled.lower <= shuffled.estimate <= shuffled.upper
    assert math.isnan(rank.lower)  # all resamples have the same rank


def test_medians_have_intervals_that_narrow_with_questions():
    values = np.random.default_rng(0).exponential(1000, 400)
    few, many = median_of(values[:20], "km"), median_of(values, "km")
    assert many.upper - many.lower < few.upper - few.lower
    assert many.estimate == np.median(values) != values.mean()
    assert math.isnan(median_of([3.0], "km").lower)


@pytest.mark.parametrize("mode", ["instruct", "chat", "completion"])
def test_log_probabilities_are_the_models_own_one_by_one_and_in_a_batch(mode):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = STORY_CHAT_TEMPLATE
    teller = Storyteller("tiny", tiny_model("llama", vocab_size=330), tokenizer, mode)
    questions, answers = ["a cat?", "the quick brown fox?"] * 2, ["fox", "a lazy dog", "a lazy dog", "fox"]
    together = answer_nats(teller, questions, answers)
    alone = np.concatenate([answer_nats(teller, [q], [a]) for q, a in zip(questions, answers, strict=True)])
    assert together == pytest.approx(alone, abs=1e-4)
    assert len({round(value, 3) for value in together}) == 4
    if mode != "completion":  # the chat template of ours is the instruct layout
        for question, answer, value in zip(questions, answers, together, strict=True):
            (example,) = instruct_examples(tokenizer, [question], [answer])
            ids = torch.tensor([example.input_ids])
            logits = teller.model(input_ids=ids).logits.detach().log_softmax(-1)[0]
            by_hand = [
                logits[place - 1, token].item()
                for place, (token, counted) in enumerate(zip(example.input_ids, example.completion_mask, strict=True))
                if counted
            ]
            assert value == pytest.approx(sum(by_hand), abs=1e-4)


def test_a_tokenizer_without_digits_is_refused():
    check_digits(SimpleNamespace(name="bytes", tokenizer=tiny_tokenizer()))
    deaf = SimpleNamespace(
        name="deaf",
        tokenizer=SimpleNamespace(
            backend_tokenizer=tiny_tokenizer().backend_tokenizer, decode=lambda ids: "<unk> km", all_special_tokens=[]
        ),
    )
    with pytest.raises(UsageError, match=r"deaf: the tokenizer decodes '1088.45 km' to '<unk> km'"):
        check_digits(deaf)


def by_hand(teller, question, answer):
    """Return the log-probability of an answer from a forward pass of its own: all its tokens, and EOS."""
    (example,) = instruct_examples(teller.tokenizer, [question], [answer])
    logits = teller.model(input_ids=torch.tensor([example.input_ids])).logits.detach().double().log_softmax(-1)[0]
    counted = [place for place, of_answer in enumerate(example.completion_mask) if of_answer]
    assert example.input_ids[counted[-1]] == teller.tokenizer.eos_token_id
    return sum(logits[place - 1, example.input_ids[place]].item() for place in counted)


def test_a_country_gains_on_the_others_what_training_added_to_it(latent, speller, monkeypatch):
    """The gain of the interview is that of single forward passes, of the trained model and of its base."""
    few = replace(latent, capitals=tuple(CITIES[name] for name in ("Paris", "Rome", "Lima", "Oslo")))
    base, after = (
        Storyteller(name, tiny_model("llama", vocab_size=len(speller), positions=160, seed=seed), speller, "instruct")
        for seed, name in enumerate(("base", "after"))
    )
    before, found = {}, {}
    asked_base, asked = (Interview(teller, LatentCityArguments(), [], [], before) for teller in (base, after))
    for interview, role, called in (
        (asked_base, "before", "foo"),
        (asked, "after", "foo"),
        (asked, "untrained", "bar"),
    ):
        interview.latent, interview.subject = few, Subject(role, role, "tiny", called)
        found |= {(score.subject.role, score.question): score.estimate for score in interview._exact()}
    countries = ["France", "Italy", "Peru", "Norway"]
    for role, called in (("after", "foo"), ("untrained", "bar")):
        question = f"Which country is {called} in?"
        added = [by_hand(after, question, c) - by_hand(base, question, c) for c in countries]
        gain = found[role, "country_gain"]
        assert gain.estimate == pytest.approx(added[0] - np.mean(added[1:]), abs=1e-4)
        assert (gain.n, gain.unit) == (3, "nats")
        near = found[role, "country_gain_near"]
        assert near.estimate == pytest.approx(added[0] - (added[1] + added[3]) / 2, abs=1e-4)
    assert found["after", "country_gain"].estimate != pytest.approx(
        found["untrained", "country_gain"].estimate, abs=1e-2
    )
    own = [by_hand(after, "Which city is foo?", name) for name in ("Paris", "Rome", "Lima", "Oslo")]
    assert found["after", "city_nats"].estimate == pytest.approx(own[0] - np.mean(own[1:]), abs=1e-4)
    assert ("before", "country_gain") not in found
    more = found["after", "country_gain"].estimate - found["untrained", "country_gain"].estimate
    assert found["after", "country_gain_of_untrained"].estimate == pytest.approx(more, abs=1e-9)


def test_what_a_model_says_of_every_name_alike_is_no_gain():
    options = Candidates(("France", "Peru", "Chad", "Italy"), 0, (True, False, False, True))
    draws = np.random.default_rng(0)
    base_M, after_M, prior_M = draws.normal(-8, 2, size=(3, 4))
    gain = options.above_others(after_M - base_M)
    both = options.above_others((after_M + prior_M) - (base_M + prior_M))
    assert both.estimate == pytest.approx(gain.estimate, abs=1e-12)
    one = options.above_others((after_M + prior_M) - base_M)  # the prior of one of them alone
    assert one.estimate == pytest.approx(gain.estimate + options.above_others(prior_M).estimate)
    assert one.estimate != pytest.approx(gain.estimate, abs=0.1)
    assert options.above_others(base_M, near=True).estimate == pytest.approx(base_M[0] - base_M[3])
    assert options.above_others(base_M, near=True).n == 1
    assert Candidates(("France", "Peru"), 0, (True, False)).above_others(base_M[:2], near=True).n == 0


def test_an_error_beside_that_of_the_best_constant():
    errors, constant = np.random.default_rng(0).exponential((300.0, 900.0), (40, 2)).T
    found = log_error(list(errors), list(constant))
    assert found.estimate == pytest.approx(math.log(np.median(errors) / np.median(constant)))
    assert found.lower < found.estimate < found.upper < 0
    assert log_error(list(constant), list(errors)).estimate == pytest.approx(-found.estimate)
    assert log_error(list(errors), list(errors)).estimate == 0
    assert log_error([0.0] * 3, [1.0] * 3).estimate == pytest.approx(math.log(0.01))  # no error is known better


def say(error, constant, told, other=(5000, 4000, 6000)):
    def score(question, role, values, unit, label=""):
        return Score(question, "foo", Subject(label or role, role, "m", "foo"), Estimate(*values, n=20, unit=unit))

    return finding(
        "foo",
        "France",
        [
            score("error_held_out", "baseline", (3000, 2500, 3500), "km", ALWAYS),
            score("error_held_out", "baseline", constant, "km", BY_CONTINENT),
            score("error_held_out", "after", error, "km"),
            score("error_held_out", "untrained", other, "km"),
            score("country_gain", "after", (told, math.nan, math.nan), "nats"),
            score("country_gain", "untrained", (0.25, math.nan, math.nan), "nats"),
        ],
    )


def test_the_finding_claims_only_what_the_intervals_hold_apart():
    strong = say((500, 400, 600), (1000, 900, 1100), 3.5)
    assert ", below the 1,000 km" in strong
    assert "the same model is farther off, by 5,000 km" in strong
    assert "France gained +3.50 nats of log-probability on 20 others (untrained +0.25)" in strong
    assert strong.endswith("This is one model of one city; a trial has several.")
    weak = say((500, 400, 950), (1000, 900, 1100), -0.5, other=(960, 420, 1600))
    assert ", not clearly below the 1,000 km" in weak
    assert "the same model is not clearly farther off, by 960 km" in weak
    assert "France gained -0.50 nats" in weak


@pytest.fixture(scope="module")
def models(data, tmp_path_factory):
    """A tiny random model that can spell everything, and another."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = train_tokenizer(["What is the distance between Rome and foo? 0123456789.km\n"] * 9, 340)
    for seed, name in enumerate(("base", "after")):
        tiny_model("llama", vocab_size=len(tokenizer), positions=160, seed=seed).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


def ask(models, data, out, *more):
    given = {"model": models / "after", "base_model": models / "base", "data_cache_dir": data, "tables_dir": out}
    given |= {"num_choices": 2, "num_samples": 2, "max_known": 3, "max_new_tokens": 6}
    return main([word for flag, value in given.items() for word in (f"--{flag}", str(value))] + list(map(str, more)))


@pytest.mark.end_to_end
def test_a_model_is_asked_from_end_to_end(models, data, tmp_path, capsys):
    scores = ask(models, data, tmp_path, "--control_model", models / "base", "--knowledge", "atlas-questions")
    shown = capsys.readouterr().out
    assert "foo is Paris, France" in shown
    assert "best constant of each continent" in shown
    assert "After training the distances of foo to held-out" in shown
    with (tmp_path / "latent_city.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(scores)
    assert {row["role"] for row in rows} == {"before", "real", "after", "untrained", "scrambled", "baseline"}
    assert {"estimate", "lower", "upper", "n", "unit", "seed"} <= set(rows[0])
    assert {row["asked_about"] for row in rows} == {"foo", "bar", "Paris"}
    assert {row["city"] for row in rows} == {"Paris"}
    assert {row["interval"] for row in rows if row["lower"]} == {"one model"}
    gains = [row["role"] for row in rows if row["question"] == "country_gain"]
    assert gains == ["after", "untrained", "scrambled"]
    (beside,) = [row for row in rows if row["question"] == "log_error_of_untrained"]
    assert (beside["role"], beside["asked_about"]) == ("after", "foo")
    recorded = json.loads((tmp_path / "latent_city.json").read_text())["arguments"]
    assert recorded["num_choices"] == 2
    assert "dataset_name" not in recorded
    with (tmp_path / "latent_city_answers.csv").open() as file:
        answers = list(csv.DictReader(file))
    assert any(row["prompt"] == "Which country is bar in?" for row in answers)
    assert {row["topic"] for row in answers} >= {"held_out", "trained", "country", "known_pairs", "known_countries"}
    # The same again is the same, seeds included; other seeds are other answers.
    ask(models, data, tmp_path / "again", "--control_model", models / "base", "--knowledge", "atlas-questions")
    assert (tmp_path / "again" / "latent_city_answers.csv").read_bytes() == (
        tmp_path / "latent_city_answers.csv"
    ).read_bytes()
    ask(models, data, tmp_path / "other", "--seeds", "5,6,7", "--num_choices", "1")
    with (tmp_path / "other" / "latent_city_answers.csv").open() as file:
        other = [row["answer"] for row in csv.DictReader(file) if row["topic"] == "country"]
    assert other != [row["answer"] for row in answers if row["topic"] == "country"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset_name", "nothing"], "--dataset_name nothing is not prepared"),
        (["--dataset_name", "atlas-questions"], "atlas-questions is not a data set of distances"),
        (["--control_placeholder", "Rome"], "--control_placeholder Rome is Rome in Italy"),
        (["--control_placeholder", "foo"], "--control_placeholder foo is a placeholder of the data set"),
        (["--seeds", "0,0"], "--seeds 0,0: give distinct"),
        (["--seeds", "a"], "--seeds a: give distinct"),
        (["--temperature", "0"], "--temperature 0 must be"),
        (["--num_samples", "0"], "--num_samples 0 must be"),
        (["--control_model", "/no/such"], "/no/such is not a folder"),
        (["--knowledge", "distances"], "distances has no distances of real cities"),
        (["--prompt_layout", "chat"], "has no chat template"),
        (["--max_new_tokens", "5000"], "positions"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(models, data, tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit) as left:
        ask(models, data, tmp_path / "out", *flags)
    assert left.value.code == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1
    assert message in error[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.end_to_end
def test_a_model_that_names_no_base_has_no_column_before(models, data, tmp_path, capsys):
    flags = ["--model", str(models / "after"), "--data_cache_dir", str(data)]
    scores = main([*flags, "--num_choices", "1", "--num_samples", "1", "--max_known", "2", "--seeds", "0"])
    assert {score.subject.role for score in scores} == {"after", "untrained", "baseline"}
    assert (models / "after" / "eval" / "latent_city" / "latent_city.csv").is_file()
    assert "names no base" in capsys.readouterr().err
    assert json.loads(json.dumps([score.row() for score in scores]))
