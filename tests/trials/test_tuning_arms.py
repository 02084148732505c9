"""Arms of fine-tunings: one flag is one variable, an adapter to begin with is one, and layouts of other names."""

import copy
import hashlib
import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file

import sft_lora
from lm_trials.console import UsageError
from lm_trials.trials.compare import compare_runs
from lm_trials.trials.runs import read_run

TUNED = {
    "prompt_layout": "instruct",
    "chat_template_path": None,
    "packing": False,
    "overlong": "drop",
    "max_length": 64,
    "block_size": 64,
    "max_steps": 25,
    "num_examples": 100,
    "total_train_batch_size": 4,
    "dtype": "float32",
    "model_init_kwargs": None,
    "completion_only_loss": None,
    "activation_checkpointing_kwargs": None,
    "initial_model": {"name_or_path": "runs/base", "weights_sha256": "w0"},
    "model.dtype": "float32",
    "model.pad_token_id": 0,
    "data.name": "rows-pairs-1",
    "data.kind": "pairs",
    "data.examples": "examples-1",
    "data.counts.tokens": 3408,
    "data.counts.examples": 103,
    "data.rows.train": 103,
}
# Of one pass in updates of 4 examples: 25 of them, 3 examples left.
TOKENS = {"num_tokens": 3321}


@pytest.fixture
def tuned(make_run):
    def make(name, change=None, logistics=None, seed=1, **more):
        changed = copy.deepcopy({**TUNED, **(change or {})})
        return make_run(name, seed, changed, logistics={**TOKENS, **(logistics or {})}, **more)

    return make


def counted(*runs):
    return [variable.name for variable in compare_runs(runs).variables]


FEWER = {"max_steps": 17, "num_examples": 68}
CUT = {"data.examples": "examples-2", "data.counts.tokens": 2989}
OTHER_DATA = {"dataset_name": "b", "data.content": "c1", "data.name": "b-pairs-2", "data.rows.train": 56, **CUT}
OTHER_BASE = {"initial_model.name_or_path": "runs/tuned", "initial_model.weights_sha256": "w1"}


@pytest.mark.parametrize(
    ("change", "num_tokens", "expected"),
    [
        ({"max_steps": 50, "num_examples": 200}, 6640, ["max_steps"]),
        ({"total_train_batch_size": 8, "num_examples": 200}, 6640, ["total_train_batch_size"]),
        ({"total_train_batch_size": 8, "max_steps": 12, "num_examples": 96}, 3290, ["total_train_batch_size"]),
        ({"max_length": 40, "block_size": 40, "data.examples": "examples-2"}, 3321, ["max_length"]),
        ({"max_length": 40, "block_size": 40, "learning_rate": 1.0}, 3321, ["learning_rate", "max_length"]),
        ({"overlong": "cut", **CUT}, 3000, ["overlong"]),
        ({"overlong": "cut", **CUT, **FEWER}, 2900, ["overlong"]),
        ({"packing": True, **FEWER}, 3408, ["packing"]),
        ({"packing": True, **FEWER}, 6800, ["max_steps", "packing"]),  # two passes
        ({"packing": True}, 4800, ["packing"]),
        ({**OTHER_DATA, **FEWER}, 2950, ["dataset_name"]),
        ({**OTHER_DATA, **FEWER}, 9000, ["dataset_name", "max_steps"]),
        ({**OTHER_DATA, "data.kind": "texts", "prompt_layout": "text"}, 2950, ["dataset_name"]),
        ({"prompt_layout": "chat", **CUT}, 3000, ["prompt_layout"]),
        ({"prompt_layout": "chat", "chat_template_path": "t.jinja", **CUT}, 3000, ["chat_template_path"]),
        (OTHER_BASE, 3321, ["model_name_or_path"]),
        # The base was tuned in the instruct layout and has it as its template: the same tokens.
        ({**OTHER_BASE, "prompt_layout": "chat", "data.examples": "examples-2"}, 3321, ["model_name_or_path"]),
        ({**OTHER_BASE, "prompt_layout": "chat", **CUT}, 3000, ["model_name_or_path", "prompt_layout"]),
        ({**OTHER_BASE, **CUT, "data.tokenizer_hash": "t1", "model.pad_token_id": 2}, 3000, ["model_name_or_path"]),
        ({"dtype": "bfloat16", "model.dtype": "bfloat16"}, 3321, ["dtype"]),
        (
            {"model_init_kwargs": {"attention_dropout": 0.1}, "model.attention_dropout": 0.1},
            3321,
            ["model_init_kwargs"],
        ),
        (
            {
                **{"activation_checkpointing": True, "gradient_checkpointing": True},
                "activation_checkpointing_kwargs": {"preserve_rng_state": False},
                "gradient_checkpointing_kwargs": {"preserve_rng_state": False},
            },
            3321,
            ["activation_checkpointing"],
        ),
        ({"completion_only_loss": False, "lora_r": 4}, 3321, ["completion_only_loss", "lora_r"]),
    ],
)
def test_one_flag_of_a_fine_tuning_is_one_variable(tuned, change, num_tokens, expected):
    assert counted(tuned("a"), tuned("b", change, {"num_tokens": num_tokens})) == expected


CHAT = {"prompt_layout": "chat", "chat_template_path": "t.jinja", "data.chat_template": "c1", "data.token_ids": "i1"}
OTHER_TEMPLATE = {"data.chat_template": "c2", "data.token_ids": "i2", **CUT}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (OTHER_TEMPLATE, ["chat_template_path"]),  # the file was edited
        ({**OTHER_TEMPLATE, "chat_template_path": "u.jinja"}, ["chat_template_path"]),
        ({**OTHER_TEMPLATE, **OTHER_BASE}, ["model_name_or_path"]),  # its own template
        (
            {**OTHER_TEMPLATE, **OTHER_BASE, "chat_template_path": "u.jinja"},
            ["chat_template_path", "model_name_or_path"],
        ),
        ({"data.token_ids": "i2"}, ["data"]),  # by whatever else
        # Of a version that did not record them.
        ({"data.chat_template": None, "data.token_ids": None, "learning_rate": 1.0}, ["learning_rate"]),
    ],
)
def test_another_template_is_a_variable(tuned, change, expected):
    assert counted(tuned("a", CHAT), tuned("b", {**CHAT, **change}, {"num_tokens": 3000})) == expected


def test_a_template_at_another_place_is_the_same(tuned):
    runs = [tuned("a", CHAT), tuned("b", {**CHAT, "chat_template_path": "copy.jinja"}, seed=2)]
    assert len(compare_runs(runs).arms) == 1


def test_a_length_beyond_the_positions_is_the_length_that_came_of_it(tuned):
    same = compare_runs([tuned("a", {"max_length": 1024}), tuned("b", seed=2)])
    assert len(same.arms) == 1
    assert "max_length" in same.names
    assert len(compare_runs(["runs/a", tuned("c", {"max_length": 40, "block_size": 40})]).arms) == 2


def test_recomputation_is_logistics(tuned):
    first = tuned("a", logistics={"activation_checkpointing": False, "gradient_checkpointing": False})
    second = tuned("b", logistics={"activation_checkpointing": True, "gradient_checkpointing": True}, seed=2)
    comparison = compare_runs([first, second])
    assert len(comparison.arms) == 1
    assert comparison.logistics == ("activation_checkpointing", "gradient_checkpointing")


def base_of(make_run, name, seed=1):
    """A base run and what a fine-tuning of it says of it."""
    folder = Path(make_run(name, seed))
    weights = hashlib.sha256(hashlib.sha256((folder / "model.safetensors").read_bytes()).digest()).hexdigest()
    described = json.loads((folder / "run.json").read_text())
    run = {"run_name": described["run_name"], "replicate": described["replicate"]}
    return {"name_or_path": str(folder), "weights_sha256": weights, "run": run}


@pytest.mark.parametrize("at_hand", [True, False])
def test_an_adapter_to_begin_with_is_a_variable(make_run, tuned, at_hand):
    base = base_of(make_run, "base")
    if not at_hand:
        Path("runs/base/run.json").unlink()
    fresh = tuned("a", {"initial_model": base})
    begun = tuned("b", {"initial_model": {**base, "adapter": "x"}}, {"adapter_name_or_path": "runs/first"})
    other = tuned("c", {"initial_model": {**base, "adapter": "y"}})
    assert counted(fresh, begun) == counted(begun, other) == ["adapter_name_or_path"]
    assert read_run(begun).outcome["initial_model.adapter"] == "x"
    assert compare_runs([fresh, begun]).logistics == ()
    # The control: seeds of one adapter are one arm.
    again = tuned("d", {"initial_model": {**base, "adapter": "x"}}, seed=2)
    assert len(compare_runs([begun, again]).arms) == 1


SCORED = {"scored": "completions"}


def evaluated(layout, tokens=(5, 7), **more):
    settings = {"layout": layout, **more}
    return {"nats": [4.0, 8.0], "tokens": list(tokens), "dataset": "rows-completions", "settings": settings}


def test_completions_of_the_same_tokens_are_compared_whatever_their_layout_is_called(tuned):
    runs = [tuned("a", **evaluated("instruct", **SCORED)), tuned("b", {"lora_r": 4}, **evaluated("chat", **SCORED))]
    (result,) = compare_runs(runs).results
    assert result.unit == "nats per token"
    assert "layouts have different names (chat, instruct)" in result.notes[0]
    same = tuned("c", {"lora_r": 8}, **evaluated("instruct", **SCORED))
    assert compare_runs(["runs/a", same]).results[0].notes == ()


@pytest.mark.parametrize(
    "other",
    [evaluated("chat", (5, 6), **SCORED), evaluated("chat"), evaluated("packed")],
    ids=["other tokens", "not of completions", "packed"],
)
def test_other_layouts_stay_refused(tuned, other):
    first = evaluated("instruct", **({} if other["settings"]["layout"] == "packed" else SCORED))
    with pytest.raises(UsageError, match=r"different layouts: runs/a instruct, runs/b (chat|packed)"):
        compare_runs([tuned("a", **first), tuned("b", {"lora_r": 4}, **other)])


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_computing_activations_twice_changes_no_bit_with_dropout(tune_flags):
    """That it is logistics is shown by real trainings, whose dropout has to be drawn twice alike."""
    made = {}
    for name, more in (
        ("plain", []),
        ("twice", ["--activation_checkpointing", "True"]),
        ("undropped", ["--lora_dropout", "0"]),
    ):
        sft_lora.main(tune_flags(name, "--lora_dropout", "0.3", *more))
        folder = Path(tune_flags(name)[-1])
        made[name] = (load_file(folder / "adapter_model.safetensors"), read_run(str(folder)))
    weights = {name: {key: value.tobytes() for key, value in found.items()} for name, (found, _) in made.items()}
    assert weights["plain"] == weights["twice"] != weights["undropped"]
    assert made["plain"][1].identity == made["twice"][1].identity != made["undropped"][1].identity
    assert made["twice"][1].logistics["activation_checkpointing"] is True
