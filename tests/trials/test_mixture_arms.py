"""Arms of mixtures: another part is one variable, another share is one variable, both parts the same is none."""

from lm_trials.trials.differences import find_variables

SHARED = {"data.tokenizer_hash": "t", "data_mix_unit": "tokens", "dataset_name": "abstracts"}


def corpus(content, prefix="data"):
    return {f"{prefix}.content": content, f"{prefix}.stories.train": len(content), f"{prefix}.tokens.train": 100}


def single(name):
    return {**SHARED, **corpus(name * 3), "dataset_config_name": name, "data_mix": None}


def mixture(mix=".5,.5", second="south"):
    parts = {**corpus("north" * 3, "data.parts.north"), **corpus(second * 3, f"data.parts.{second}")}
    return {**SHARED, **parts, "dataset_config_name": f"north+{second}", "data_mix": mix}


def names(*outcomes):
    return [variable.name for variable in find_variables(outcomes)]


def test_one_corpus_another_and_both_differ_in_the_data_alone():
    assert names(single("north"), single("south"), mixture()) == ["dataset_config_name"]
    (variable,) = find_variables([single("north"), mixture()])
    assert {"data_mix", "data.content", "data.parts.north.content"} <= set(variable.fields)


def test_another_share_of_the_same_parts_is_a_variable_of_its_own():
    assert names(mixture(), mixture(".3,.7")) == ["data_mix"]
    assert names(mixture(), mixture()) == []


def test_another_tokenizer_or_rate_beside_it_is_counted():
    other = {**mixture(), "data.tokenizer_hash": "u", "learning_rate": 2.0}
    assert len(names({**single("north"), "learning_rate": 1.0}, other)) == 3
