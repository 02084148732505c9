"""What a model folder says beside its weights: compared with them, set neutral, or refused in one line."""

import ast
import json
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from refusals import usage_error as refusal
from safetensors.torch import load_file, save_file
from tiny_models import KINDS, tiny_model, tiny_tokenizer
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, Gemma3Config, GenerationConfig, PreTrainedTokenizerFast
from transformers.models.gemma3.configuration_gemma3 import Gemma3TextConfig

import lm_trials
from lm_trials.evaluation.checkpoints import check_candidate
from lm_trials.evaluation.flags import EvaluationArguments
from lm_trials.evaluation.generation import write_stories
from lm_trials.evaluation.storytellers import open_storyteller
from lm_trials.models.overrides import check_numbers
from lm_trials.models.reference import (
    chosen_window,
    load_config,
    load_model,
    load_tokenizer_of,
    positions_of,
    resolve_model,
)
from lm_trials.models.shapes import describe_shape, text_config
from lm_trials.probing.anatomy import anatomy_of
from lm_trials.probing.capture import Capture
from lm_trials.training.fine_tuning import choose_start
from lm_trials.training.flags import DataArguments, ModelArguments
from lm_trials.training.initial import choose_initial
from lm_trials.training.throughput import flops_per_token
from lm_trials.training.tuning_flags import AdapterArguments

TOKENIZER = tiny_tokenizer()
PROMPTS = [[1, 40, 41, 42, 43], [1, 50]]


def load(folder):
    return load_model(resolve_model(str(folder)))


def logits(model):
    with torch.no_grad():
        return model(torch.arange(1, 9)[None]).logits


def change(file, **values):
    content = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(content | values))


def change_weights(folder, **added):
    file = folder / "model.safetensors"
    save_file(load_file(file) | added, file, metadata={"format": "pt"})


@pytest.fixture(params=KINDS)
def folder(request, tmp_path):
    tiny_model(request.param, vocab_size=330).save_pretrained(tmp_path / request.param)
    return tmp_path / request.param


def depth(folder):
    return "n_layer" if folder.name == "gpt2" else "num_hidden_layers"


@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize(
    ("layers", "message"), [(1, "has weights that are no part of a "), (3, "lacks weights of a "), (2, None)]
)
def test_weights_and_configuration_have_the_same_layers(folder, layers, message, shards):
    model = load(folder)
    if shards > 1:
        shutil.rmtree(folder)
        model.save_pretrained(folder, max_shard_size="10KB")
        assert len(list(folder.glob("*.safetensors"))) > 1
    change(folder / "config.json", **{depth(folder): layers})
    if message is None:
        assert torch.equal(logits(load(folder)), logits(model))
        return
    said = refusal(load, folder)
    assert f"{folder} {message}{type(model).__name__} (" in said
    assert f".{min(layers, 2)}." in said
    assert " more); give " in said


@pytest.mark.parametrize("value", [0, -2, "two", 2.5, None])
def test_a_number_that_can_be_no_number_of_layers_is_refused(folder, value):
    change(folder / "config.json", **{depth(folder): value})
    said = refusal(load_config, resolve_model(str(folder)))
    assert str(folder) in said
    assert depth(folder) in said
    assert said == refusal(load, folder)


@pytest.mark.parametrize(("field", "value", "right"), [("drop", 3.0, 1.0), ("drop", -0.1, 0.0), ("eps", 0.0, 1e-9)])
def test_a_number_with_which_a_model_would_compute_nonsense_is_refused(folder, field, value, right):
    names = {"drop": ("attn_pdrop", "attention_dropout"), "eps": ("layer_norm_epsilon", "rms_norm_eps")}[field]
    name = names[folder.name == "llama"]
    change(folder / "config.json", **{name: value})
    assert f"{folder}: config.json has {name} {value}, which must be" in refusal(load, folder)
    change(folder / "config.json", **{name: right})
    load(folder)


def test_a_folder_with_two_models_is_refused(folder):
    load(folder).save_pretrained(folder / "shards", max_shard_size="10KB")
    for file in (folder / "shards").glob("model*"):
        shutil.copy(file, folder)
    assert "has two models, model.safetensors and the files of" in refusal(load, folder)
    load(folder / "shards")
    (folder / "model.safetensors").unlink()
    load(folder)


def test_every_default_configuration_has_possible_numbers():
    """Also where a number differs between layers (Gemma 4)."""
    for name in ("gpt2", "bloom", "mamba", "xlnet", "gemma4", "opt", "mpt", "gemma3"):
        check_numbers(text_config(AutoConfig.for_model(name)), name)


def test_weights_of_another_shape_or_of_another_head_are_refused(folder):
    width = "n_inner" if folder.name == "gpt2" else "intermediate_size"
    change(folder / "config.json", **{width: 48})
    said = refusal(load, folder)
    assert "has weights of other shapes than those of a " in said
    assert "48" in said
    change(folder / "config.json", **{width: 64 if folder.name == "gpt2" else 32})
    load(folder)
    change_weights(folder, **{"v_head.summary.weight": torch.ones(1, 16)})
    assert "(v_head.summary.weight);" in refusal(load, folder)


def test_weights_that_the_library_knows_to_be_old_or_shared_are_no_fault(folder):
    model = load(folder)
    old = {f"transformer.h.{n}.attn.{name}": torch.ones(1) for n in (0, 1) for name in ("bias", "masked_bias")}
    if folder.name == "llama":
        old = {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.ones(2) for n in (0, 1)}
    else:
        old["lm_head.weight"] = model.transformer.wte.weight.detach().clone()
    change_weights(folder, **old)
    assert torch.equal(logits(load(folder)), logits(model))


def test_a_head_is_not_tied_over_its_own_weights(tmp_path):
    model = tiny_model("llama")
    model.save_pretrained(tmp_path)
    change(tmp_path / "config.json", tie_word_embeddings=True)
    assert torch.equal(logits(load(tmp_path)), logits(model))


def test_what_a_call_returns_and_which_attention_computes_it_are_no_part_of_the_model(folder):
    model = load(folder)
    given = {"return_dict": False, "output_attentions": True, "output_hidden_states": True}
    change(folder / "config.json", **given, attn_implementation="flash_attention_2", use_cache=False)
    output = load(folder)(torch.arange(1, 9)[None])
    assert torch.equal(output.logits, logits(model))
    assert (output.hidden_states, output.attentions) == (None, None)


def test_models_are_loaded_in_one_place():
    root = Path(lm_trials.__file__).parent
    places = [path for path in root.rglob("*.py") if "AutoModelForCausalLM.from_pretrained" in path.read_text()]
    assert [path.relative_to(root).as_posix() for path in places] == ["models/reference.py"]


# Generation settings.
VALUES = st.sampled_from([True, False, None, 0, 3, -1, 0.5, 1e9, "x", "", [], [5], [[5, 6]], {"a": 1}, [0, "x"]])
SETTINGS = st.dictionaries(st.sampled_from([*sorted(vars(GenerationConfig())), "custom", "_x"]), VALUES, max_size=6)


def greedy(model):
    return write_stories(model, TOKENIZER, PROMPTS, max_new_tokens=8, temperature=0.0)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A folder, and the texts of its model without any settings."""
    folder = tmp_path_factory.mktemp("plain")
    tiny_model("gpt2", vocab_size=330).save_pretrained(folder)
    (folder / "generation_config.json").unlink()
    return folder, greedy(load(folder)), json.loads((folder / "config.json").read_text())


@settings(max_examples=25, deadline=None)
@given(given=SETTINGS, file=st.sampled_from(["generation_config.json", "config.json"]))
@example({"repetition_penalty": 1.3, "no_repeat_ngram_size": 1, "suppress_tokens": [5]}, "generation_config.json")
@example({"repetition_penalty": 1.3, "min_length": 20, "num_beams": 4}, "config.json")
@example({"num_beams": 3, "penalty_alpha": 0.6, "top_k": 4, "prompt_lookup_num_tokens": 3}, "generation_config.json")
@example({"watermarking_config": {"bias": 5.0}, "stop_strings": ["a"], "max_time": 0.0}, "generation_config.json")
@example({"cache_implementation": "quantized", "top_h": 0.1, "use_mtp": True}, "generation_config.json")
@example({"temperature": 0.1, "do_sample": False, "eos_token_id": "</s>"}, "generation_config.json")
@example({"pad_token_id": [5]}, "generation_config.json")
def test_a_text_follows_the_flags_alone_whatever_a_folder_says(plain, given, file):
    folder, expected, config = plain
    if file == "config.json":  # what configurations of transformers 3 had, beside what a configuration has
        given = {
            name: value for name, value in given.items() if name in GenerationConfig._get_default_generation_params()
        }
        given.pop("use_cache", None)
    (folder / "generation_config.json").unlink(missing_ok=True)
    change(folder / file, **given)
    try:
        model = load(folder)
        assert greedy(model) == expected
        model.save_pretrained(folder / "again")  # refused by transformers for some settings
    finally:
        (folder / "config.json").write_text(json.dumps(config))


def test_what_is_set_aside_is_told_once_and_where_a_text_is_written(folder, capsys):
    file = folder / "generation_config.json"
    change(file, repetition_penalty=1.3, num_beams=1, max_length=None, eos_token_id=[2, 7], custom=[3])
    model = load(folder)
    assert model.generation_config.eos_token_id == [2, 7]
    assert "set aside" not in capsys.readouterr().err
    expected = greedy(model)
    told = [line for line in capsys.readouterr().err.splitlines() if "set aside" in line]
    assert [f"{folder}: generation_config.json is set aside (repetition_penalty, custom)" in line for line in told] == [
        True
    ]
    assert greedy(model) == expected
    assert "set aside" not in capsys.readouterr().err
    model.generation_config.repetition_penalty = 1.3  # the neighbour: obeyed, it changes a text
    assert greedy(model) != expected


@pytest.mark.parametrize("content", ["", "{", "[]", "nonsense", '"text"'])
def test_a_broken_file_of_settings_is_set_aside(folder, content, capsys):
    expected = greedy(load(folder))
    (folder / "generation_config.json").write_text(content)
    assert greedy(load(folder)) == expected
    assert "set aside (all of generation_config.json" in capsys.readouterr().err
    (folder / "generation_config.json").unlink()
    assert greedy(load(folder)) == expected
    assert "set aside" not in capsys.readouterr().err


# Configurations with the text model's inside.
TEXT = {
    **{"vocab_size": 330, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1},
    "eos_token_id": 2,
}
VISION = {
    **{"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"image_size": 28, "patch_size": 14},
}
NESTED = ("gemma3", "llama4", "fuyu")


@pytest.fixture(scope="module", params=NESTED)
def nested(request, tmp_path_factory):
    """A multimodal model saved whole, with 64 positions in its text configuration."""
    folder = tmp_path_factory.mktemp(request.param)
    parts = AutoConfig.for_model(request.param).to_dict()
    for name in ("text_config", "vision_config"):
        new = TEXT if name == "text_config" else VISION
        if name in parts:
            per_layer = {"layer_types", "moe_layers", "no_rope_layers", "transformers_version"}
            parts[name] = {
                field: new.get(field, value) for field, value in parts[name].items() if field not in per_layer
            }
    kept = {name: parts[name] for name in ("text_config", "vision_config") if name in parts}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(request.param, **kept))
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


def test_a_nested_configuration_is_read_where_the_text_model_is(nested):
    reference = resolve_model(str(nested))
    config, model = load_config(reference), load(nested)
    assert positions_of(config) == positions_of(model) == chosen_window(None, config, "") == 64
    assert check_candidate(str(nested), EvaluationArguments()).block_size == 64
    assert "num_hidden_layers 2" in describe_shape(text_config(config))
    assert flops_per_token(model, 8) > 0
    anatomy = anatomy_of(model)
    assert (anatomy.num_blocks, anatomy.num_heads, anatomy.width) == (2, 2, 16)
    assert anatomy.head.weight.shape == (330, 16)
    with Capture(model, ["hidden", "keys"]) as capture:
        whole = model(torch.arange(1, 9)[None]).logits
    found = capture.activations.of("hidden", 2)
    assert torch.allclose(anatomy.head(anatomy.final_norm(found)), whole[0], atol=1e-5)
    assert len(greedy(model)[0]) <= 8
    too_long = EvaluationArguments(block_size=65)
    assert "--block_size 65 is longer than the model's 64 positions" in refusal(check_candidate, str(nested), too_long)


def test_no_code_reads_the_text_models_fields_from_a_whole_configuration():
    """`.config.hidden_size` of Gemma 3 does not exist, and `getattr(.config, ...)` silently gives a default."""
    fields_of_text = {field.name for field in fields(Gemma3TextConfig)} - {field.name for field in fields(Gemma3Config)}
    assert {"hidden_size", "vocab_size", "max_position_embeddings"} < fields_of_text
    found = []
    for path in Path(lm_trials.__file__).parent.rglob("*.py"):
        source = path.read_text()
        if path.name == "subjects.py" or ".config" not in source:  # `Subject.config` is the text model's
            continue
        for node in ast.walk(ast.parse(source)):
            owner, name = None, None
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                owner, name = node.value, node.attr
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
                owner, name = node.args[0], getattr(node.args[1], "value", None)
            if isinstance(owner, ast.Attribute) and owner.attr == "config" and name in fields_of_text:
                found.append(f"{path.name}:{node.lineno} {ast.unparse(node)}")
    assert [place for place in found if "subject.config" not in place] == []


def with_holes(tokenizer, place):
    """A tokenizer whose last token has the id `place`, saved and loaded again by the caller."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend["model"]["vocab"]["zebra"] = place
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(backend)), bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.mark.parametrize("place", [330, 331, 400])
def test_every_id_of_a_vocabulary_with_holes_has_a_row(place, tmp_path):
    with_holes(TOKENIZER, place).save_pretrained(tmp_path)
    shape = "hidden_size=16,num_hidden_layers=1,num_attention_heads=2,intermediate_size=16"
    shape_args = ModelArguments(model_type="llama", config_overrides=shape)
    initial = choose_initial(shape_args, DataArguments(tokenizer_name=str(tmp_path), block_size=8))
    assert (len(initial.tokenizer), initial.config.vocab_size) == (331, place + 1)
    assert initial.load(seed=0)(torch.tensor([[1, place]])).logits.shape[-1] == place + 1
    # The neighbour: a model of as many rows as tokens.
    tiny_model("llama", vocab_size=331).save_pretrained(tmp_path)
    if place == 330:
        load_tokenizer_of(resolve_model(str(tmp_path)))
        return
    said = refusal(load_tokenizer_of, resolve_model(str(tmp_path)))
    assert f"{tmp_path} has 331 embeddings and the tokenizer's ids go up to {place}; give the tokenizer" in said
    base = ModelArguments(model_name_or_path=str(tmp_path))
    assert refusal(choose_initial, base, DataArguments(block_size=8)) == said
    assert refusal(choose_start, AdapterArguments(model_name_or_path=str(tmp_path))) == said
    assert refusal(open_storyteller, str(tmp_path)) == said
    assert refusal(check_candidate, str(tmp_path), EvaluationArguments()) == said
