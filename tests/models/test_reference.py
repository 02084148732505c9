"""What `--model_name_or_path` may name."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from refusals import usage_error as refusal
from tiny_models import KINDS, tiny_model, tiny_tokenizer
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM

from lm_trials.models.reference import (
    ModelReference,
    checkpoints,
    load_config,
    load_model,
    load_tokenizer_of,
    positions_of,
    read_run,
    resolve_model,
)


@pytest.fixture
def saved(tmp_path):
    """A model folder `whole` with its tokenizer."""
    model, tokenizer = tiny_model("llama", vocab_size=330), tiny_tokenizer()
    model.save_pretrained(tmp_path / "whole")
    tokenizer.save_pretrained(tmp_path / "whole")
    return tmp_path / "whole"


@pytest.fixture
def adapter(saved, tmp_path):
    """A LoRA adapter folder on `saved`, whose weights change what the model says, without a tokenizer."""
    model = get_peft_model(load_model(resolve_model(str(saved))), LoraConfig(target_modules=["q_proj"], r=2))
    torch.nn.init.normal_(model.base_model.model.model.layers[0].self_attn.q_proj.lora_B["default"].weight)
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


# PEFT 0.21 asks transformers 5.23 by a name that is to go.
peft_warns = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def logits(model):
    with torch.no_grad():
        return model(torch.arange(1, 9)[None]).logits


def test_a_folder_is_named_by_its_path_and_a_hub_model_with_its_revision(saved):
    assert resolve_model(str(saved)) == ModelReference(str(saved))
    assert resolve_model("gpt2") == ModelReference("gpt2")
    assert resolve_model("owner/name@step10") == ModelReference("owner/name", "step10")
    assert resolve_model("owner/name@step10").name != resolve_model("owner/name@step20").name
    assert (ModelReference("run/checkpoint-7").step, ModelReference("run").step) == (7, None)


@pytest.mark.parametrize("reference", ["./nowhere", "/no/such/folder", "a/b/c", "~nobody/x", "", "@main"])
def test_what_can_be_no_hub_name_is_a_missing_folder(reference):
    assert "is not a folder; give a run, a checkpoint, a model folder or a Hub name" in refusal(
        resolve_model, reference
    )


def test_a_file_is_no_model(saved):
    assert "is not a folder" in refusal(resolve_model, str(saved / "config.json"))


def test_a_mistyped_run_is_not_looked_up_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    assert "runs/dmo does not exist; did you mean runs/demo?" in refusal(resolve_model, "runs/dmo")
    assert resolve_model("runs/dmo@main") == ModelReference("runs/dmo", "main")
    assert resolve_model("elsewhere/dmo") == ModelReference("elsewhere/dmo")


def test_a_folder_without_a_model_names_its_checkpoints(tmp_path):
    (tmp_path / "checkpoint-20").mkdir()
    (tmp_path / "checkpoint-100").mkdir()
    (tmp_path / "checkpoint-old").mkdir()
    assert "no config.json (it has checkpoint-20, checkpoint-100);" in refusal(resolve_model, str(tmp_path))
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-20", "checkpoint-100"]
    assert "no checkpoints" in refusal(resolve_model, str(tmp_path / "checkpoint-20"))


def test_pickled_weights_are_not_read(saved):
    (saved / "model.safetensors").unlink()
    (saved / "pytorch_model.bin").write_bytes(b"never opened")
    message = refusal(resolve_model, str(saved))
    assert "has no *.safetensors; pickled weights (.bin) are not loaded" in message


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_loaded_as_it_was_in_float32_and_evaluation_mode(kind, tmp_path):
    model = tiny_model(kind)
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    loaded = load_model(resolve_model(str(tmp_path)))
    assert loaded.dtype == torch.float32
    assert not loaded.training
    assert loaded.loss_type == "ForCausalLM"  # else it is another loss
    weights, kept = model.state_dict(), loaded.state_dict()
    assert all(torch.equal(kept[name], weights[name].float()) for name in weights)
    assert not torch.equal(logits(loaded), logits(tiny_model(kind, seed=1)))
    assert positions_of(loaded) == positions_of(load_config(resolve_model(str(tmp_path)))) == 64


@peft_warns
def test_an_adapter_is_its_base_and_more(adapter, saved):
    reference = resolve_model(str(adapter))
    assert reference.base == str(saved)
    adapted, base = load_model(reference), load_model(resolve_model(str(saved)))
    assert not torch.equal(logits(adapted), logits(base))
    assert not adapted.training
    assert adapted.get_base_model().loss_type == "ForCausalLM"
    assert positions_of(adapted) == 64
    assert load_config(reference).vocab_size == 330
    assert len(load_tokenizer_of(reference)) == len(tiny_tokenizer())


@peft_warns
def test_an_adapter_whose_base_is_gone_is_one_line(adapter, saved):
    known = resolve_model(str(adapter))
    shutil.rmtree(saved)
    assert f"its base {saved} does not exist; restore the base" in refusal(resolve_model, str(adapter))
    for function in (load_model, load_config, load_tokenizer_of):  # gone since it was resolved
        assert f"{saved} is not a folder" in refusal(function, known)
    for itself in (str(adapter), f"{adapter}/../{adapter.name}/"):
        (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": itself}))
        assert "names itself as its base; correct" in refusal(resolve_model, str(adapter))
    (adapter / "adapter_config.json").write_text("{}")
    assert "has no base_model_name_or_path" in refusal(resolve_model, str(adapter))
    (adapter / "adapter_config.json").write_text("{")
    assert "cannot be read as JSON" in refusal(resolve_model, str(adapter))


@peft_warns
@pytest.mark.parametrize(
    ("base", "files", "message"),
    [
        ("adapter", [], "{here} is an adapter that names itself as its base"),
        ("other", [], "is an adapter and its base {other} is one too"),
        (5, [], "has no base_model_name_or_path"),
        ("whole", ["adapter_model.safetensors"], "has adapter_config.json without adapter_model.safetensors; restore"),
    ],
)
def test_an_adapter_folder_that_cannot_be_read_is_one_line(adapter, saved, tmp_path, base, files, message):
    shutil.copytree(adapter, tmp_path / "other")
    shutil.copy(saved / "model.safetensors", adapter)  # as where a merged model is saved over its adapter
    for name in files:
        (adapter / name).unlink()
    place = str(tmp_path / base) if isinstance(base, str) else base
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": place}))
    expected = message.format(here=adapter, other=tmp_path / "other")
    assert expected in refusal(resolve_model, str(adapter))
    assert resolve_model(str(tmp_path / "other")).base == str(saved)


@peft_warns
def test_an_adapter_with_other_layers_is_refused_in_one_line(adapter):
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"target_modules": ["q_proj", "v_proj"]}))
    assert "missing keys, for example" in refusal(load_model, resolve_model(str(adapter)))


@pytest.mark.parametrize("kind", ["longrope", "yarn", "linear", "dynamic", "default"])
def test_positions_end_where_a_long_row_would_change_the_others_of_its_batch(kind, tmp_path):
    rope = {"rope_type": kind, "rope_theta": 1e4, "factor": 8.0}
    if kind in ("longrope", "yarn"):
        rope |= {"original_max_position_embeddings": 8}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 4, "long_factor": [9.0] * 4}
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = LlamaConfig(
        **sizes, vocab_size=64, max_position_embeddings=64, initializer_range=0.5, rope_parameters=rope
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    model = load_model(resolve_model(str(tmp_path)))
    positions = positions_of(model)
    with torch.no_grad():
        rows = [model(torch.arange(length)[None], use_cache=False).logits[0, :8] for length in (8, positions, 64)]
    assert positions == (8 if kind == "longrope" else 64)
    assert (rows[0] - rows[1]).abs().max() < 1e-4
    assert ((rows[0] - rows[2]).abs().max() > 1e-2) == (kind == "longrope")


def test_weights_that_are_not_there_are_not_made_up(saved, tmp_path):
    """transformers fills them in at random, with a warning, and the evaluation would be of noise."""
    whole = resolve_model(str(saved))
    load_model(whole)
    encoder = BertForMaskedLM(
        BertConfig(vocab_size=64, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    )
    encoder.bert.save_pretrained(tmp_path / "headless")
    message = refusal(load_model, resolve_model(str(tmp_path / "headless")))
    assert "lacks weights of a BertLMHeadModel (" in message
    assert "give a complete causal language model" in message


def damaged(path, change):
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("model.safetensors", lambda content: content[: len(content) // 2]),
        ("model.safetensors", lambda content: b""),
        ("config.json", lambda content: b"{"),
        ("config.json", lambda content: b"{}"),
        ("config.json", lambda content: content.replace(b'"llama"', b'"t5"')),
        ("config.json", lambda content: content.replace(b'"llama"', b'"no_such_type"')),
        ("config.json", lambda content: content.replace(b'"hidden_size": 16', b'"hidden_size": 32')),
    ],
    ids=["cut", "empty", "no JSON", "no type", "no causal model", "unknown type", "another shape"],
)
def test_a_damaged_model_is_one_line(saved, name, change):
    damaged(saved / name, change)
    message = refusal(load_model, resolve_model(str(saved)))
    assert message.startswith(f"{saved} ")
    assert "; give " in message


def test_a_hub_model_that_is_not_at_hand_is_one_line():
    for function in (load_model, load_config, load_tokenizer_of):
        assert refusal(function, resolve_model("no-such-owner/no-such-model")).startswith(
            "no-such-owner/no-such-model "
        )


def test_a_model_without_a_tokenizer_says_so_and_another_can_be_named(saved, tmp_path):
    tiny_model("llama", vocab_size=330).save_pretrained(tmp_path / "bare")
    reference = resolve_model(str(tmp_path / "bare"))
    message = refusal(load_tokenizer_of, reference)
    assert "has no tokenizer beside its weights" in message
    assert message.endswith("lm-trials evaluate --tokenizer_name")
    assert len(load_tokenizer_of(reference, str(saved))) == len(tiny_tokenizer())


def test_run_json_is_read_of_a_run_and_of_its_checkpoints_alone(tmp_path):
    checkpoint = tmp_path / "checkpoint-1"
    checkpoint.mkdir()
    assert read_run(checkpoint) is None
    run = {"outcome": {"append_eos": True}, "replicate": {"seed": 3}}
    (tmp_path / "run.json").write_text(json.dumps(run))
    assert read_run(checkpoint) == read_run(tmp_path) == run
    assert read_run(tmp_path / "a-name-on-the-hub") is None
    (tmp_path / "run.json").write_text('{"someone": "else\'s"}')
    assert read_run(tmp_path) is None
    (tmp_path / "run.json").write_text("{")
    assert "cannot be read as JSON" in refusal(read_run, tmp_path)


def test_eos_is_trained_where_it_is_the_pad_token_too(saved):
    """transformers gives the row of the pad token no gradient; a model without a spare token pads with EOS."""
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, "pad_token_id": 2}))
    changed = []
    for model in (load_model(resolve_model(str(saved))), LlamaForCausalLM.from_pretrained(saved)):
        ids = torch.tensor([[2, 5, 6]])
        model(input_ids=ids, labels=ids).loss.backward()
        changed.append(bool(model.get_input_embeddings().weight.grad[2].any()))
    assert changed == [True, False]
