"""Model types beside GPT-2 and Llama: their shapes, losses and adapters, and their insides as probes read them."""

import json

import pytest
import torch
from refusals import usage_error as refusal
from tiny_models import FAMILIES, KINDS, tiny_family, tiny_model
from transformers import AutoConfig, AutoModelForCausalLM, Gemma3Config

import eval_checkpoint
import sft_lora
import train_gpt2
from lm_trials.evaluation import generate
from lm_trials.evaluation.losses import ROUNDING, documents_apart
from lm_trials.models.adapters import LoraSpec, add_lora
from lm_trials.models.reference import chosen_window, load_model, positions_of, resolve_model
from lm_trials.models.shapes import build_config, describe_shape, dropout_fields
from lm_trials.pairs.examples import ExampleStore
from lm_trials.probing.anatomy import anatomy_of
from lm_trials.probing.capture import SITES, Capture, check_capture
from lm_trials.probing.interventions import ModelPart, Patched
from lm_trials.tokens.blocks import TrainingBlocks, tiny_store
from lm_trials.training.initial import check_trainable
from lm_trials.training.run_arguments import RunArguments
from lm_trials.training.trainer import StoryTrainer
from lm_trials.training.tuning_examples import row_order

TOKENS = {"vocab_size": 300, "block_size": 16, "bos_token_id": 1, "eos_token_id": 2}
POSITIONS = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]])
TEXT = torch.tensor([[1, 40, 7, 9, 33, 21, 8, 50, 12, 5]])

# PEFT 0.21 asks transformers 5.23 by a name that is to go.
peft_warns = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")


def shape(model_type, overrides=None, **changes):
    return build_config(model_type, None, overrides, **TOKENS | changes)


@pytest.mark.parametrize(
    ("model_type", "expected"),
    [
        ("qwen3", {"intermediate_size": 688, "num_key_value_heads": 4, "head_dim": 32}),
        ("gemma3_text", {"intermediate_size": 512, "num_key_value_heads": 2, "head_dim": 32, "sliding_window": 128}),
        ("olmo2", {"intermediate_size": 344, "num_key_value_heads": 4}),
        ("gpt_neox", {"intermediate_size": 512}),
        ("smollm3", {"intermediate_size": 688, "num_key_value_heads": 1, "no_rope_layers": [1, 1, 1, 0]}),
    ],
)
def test_a_type_alone_is_a_small_model_in_its_own_proportions(model_type, expected):
    config, library = shape(model_type), AutoConfig.for_model(model_type)
    found = {name: getattr(config, name) for name in expected}
    assert found == expected
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (128, 4, 4)
    assert (config.vocab_size, config.bos_token_id, config.eos_token_id, config.pad_token_id) == (300, 1, 2, None)
    assert config.tie_word_embeddings == library.tie_word_embeddings
    assert len(getattr(config, "layer_types", "four")) == 4
    assert config.max_position_embeddings == 256 != library.max_position_embeddings
    assert shape(model_type, block_size=700).max_position_embeddings == 700
    assert all(f"{name} {value}" in describe_shape(config) for name, value in expected.items() if value != [1, 1, 1, 0])


def test_what_follows_from_an_override_and_what_is_given_stays():
    gemma = shape("gemma3_text", "hidden_size=64,num_attention_heads=8,num_hidden_layers=7")
    assert (gemma.intermediate_size, gemma.num_key_value_heads, gemma.head_dim) == (256, 4, 8)
    assert gemma.query_pre_attn_scalar == 8  # the scale of the attention is that of a head, as at the published size
    assert gemma.layer_types == ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"]
    given = "hidden_size=64,intermediate_size=96,num_key_value_heads=1,head_dim=32,sliding_window=256"
    stated = shape("gemma3_text", f"{given},tie_word_embeddings=false")
    values = [getattr(stated, part.partition("=")[0]) for part in given.split(",")]
    assert values == [64, 96, 1, 32, 256]
    assert (stated.query_pre_attn_scalar, stated.tie_word_embeddings) == (32, False)
    windows = shape("qwen3", "use_sliding_window=true,max_window_layers=1,sliding_window=8")
    assert (windows.sliding_window, windows.layer_types.count("sliding_attention")) == (8, 3)
    assert shape("qwen3").sliding_window is None


def test_a_model_of_few_layers_keeps_every_kind_of_layer():
    """Every sixth layer of Gemma 3 sees all positions, every fourth of SmolLM3 has no rotations."""
    assert shape("gemma3_text").layer_types == ["sliding_attention"] * 3 + ["full_attention"]
    assert shape("gemma3_text", "num_hidden_layers=1").layer_types == ["sliding_attention"]
    assert shape("smollm3", "num_hidden_layers=2").no_rope_layers == [1, 0]
    neo = shape("gpt_neo", "num_layers=3")
    assert (neo.attention_layers, neo.window_size) == (["global", "local", "global"], 128)


def test_a_file_of_another_type_keeps_what_is_not_overridden(tmp_path):
    """Layer lists are as long as the layers are many, widths in proportion; a multimodal model is its text model."""
    text = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 12, "head_dim": 32, "vocab_size": 300}
    Gemma3Config(text_config={**text, "intermediate_size": 96, "rms_norm_eps": 0.5}).save_pretrained(tmp_path)
    whole = build_config(None, str(tmp_path), None, **TOKENS)
    assert (whole.model_type, whole.rms_norm_eps, len(whole.layer_types)) == ("gemma3_text", 0.5, 12)
    assert (whole.head_dim, whole.sliding_window, whole.max_position_embeddings) == (32, 4096, 131_072)
    changed = build_config(None, str(tmp_path), "hidden_size=128,num_hidden_layers=3", **TOKENS)
    assert (changed.intermediate_size, changed.head_dim, changed.rms_norm_eps) == (192, 32, 0.5)
    assert changed.layer_types == ["sliding_attention", "sliding_attention", "full_attention"]
    assert shape("gemma3").model_type == "gemma3_text"


def test_fields_have_the_names_of_their_type():
    bloom = shape("bloom", "n_layer=2", dropout=0.25)
    assert (bloom.hidden_size, bloom.n_head, bloom.hidden_dropout, bloom.attention_dropout) == (128, 4, 0.25, 0.25)
    assert positions_of(bloom) is None
    assert chosen_window(None, bloom, "") == 1024
    gptj = shape("gptj", "n_embd=64", block_size=300)
    assert (gptj.n_embd, gptj.n_positions, gptj.rotary_dim, positions_of(gptj)) == (64, 300, 4, 300)
    assert positions_of(shape("mpt", "max_seq_len=40")) == 40
    assert dropout_fields(AutoConfig.for_model("gpt_neox")) == ["attention_dropout", "hidden_dropout"]


@pytest.mark.parametrize(
    ("model_type", "overrides", "message"),
    [
        (
            "qwen33",
            None,
            "--model_type qwen33 is unknown; did you mean qwen3? give a type of AutoModelForCausalLM, for example ",
        ),
        ("t5", None, "--model_type t5 has no causal language model in transformers; "),
        ("vit", None, "--model_type vit has no causal"),
        ("emu3", None, "--model_type emu3 is a emu3_text_model"),
        ("gemma4_assistant", None, "--model_type gemma4_assistant has no default configuration in transformers ("),
        ("gemma4", None, "--model_type gemma4 has layers of different sizes, which are not supported"),
        (
            "gemma3",
            "hidden_siz=8",
            "hidden_siz is not a field of a gemma3_text configuration; did you mean hidden_size?",
        ),
        ("gptj", "num_hidden_layers=2", "num_hidden_layers is called n_layer in a gptj configuration"),
        ("gemma3_text", "num_key_value_heads=3", "num_key_value_heads may be 1, 2, 4"),
        ("gpt_neox", "hidden_size=12", "gives heads of 3 dimensions, and rotary positions rotate pairs"),
        ("olmo2", "max_position_embeddings=8", "--config_overrides max_position_embeddings=16"),
        ("zamba2", None, "--config_overrides: transformers refuses the configuration ("),
    ],
)
def test_a_mistake_gets_one_line(model_type, overrides, message):
    assert message in refusal(shape, model_type, overrides)


@pytest.mark.parametrize("kind", [*KINDS, *FAMILIES])
def test_what_is_trained_predicts_the_next_token_and_keeps_documents_apart(kind):
    check_trainable(tiny_model(kind) if kind in KINDS else tiny_family(kind), kind, documents_apart=True)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("bart", "bart: its loss in transformers is not that of the next token ("),
        ("cpmant", "cpmant attends to later tokens"),
        ("roberta", "roberta cannot be trained on tokens alone (TypeError: "),
    ],
)
def test_what_would_learn_something_else_is_refused(kind, message):
    model = AutoModelForCausalLM.from_config(shape(kind))
    assert refusal(check_trainable, model, kind, documents_apart=False).startswith(message)


@pytest.mark.parametrize("kind", ["bloom", "opt", "mamba"])
def test_a_type_that_ignores_where_documents_begin_is_refused_where_it_matters(kind):
    model = AutoModelForCausalLM.from_config(shape(kind))
    check_trainable(model, kind, documents_apart=False)
    message = refusal(check_trainable, model, kind, documents_apart=True)
    assert message.startswith(f"--attention_across_documents False has no effect on a {kind}, whose tokens")


@pytest.mark.parametrize(
    ("kind", "overrides", "apart"),
    [
        ("jamba", "initializer_range=0.001,mamba_d_state=4,mamba_dt_rank=4,num_experts=2", False),
        ("minimax", "initializer_range=0.001,num_local_experts=2", False),
        ("opt", "init_std=0.001", False),
        ("llama", "initializer_range=0.001", True),
        ("mixtral", "initializer_range=0.001,num_local_experts=2", True),
    ],
)
def test_a_leak_between_documents_below_rounding_is_seen(kind, overrides, apart):
    """Small random weights hide it in the logits; the gradient of what is masked is zero, and of what leaks never."""
    sizes = "hidden_size=16,num_hidden_layers=2,num_attention_heads=4"
    model = AutoModelForCausalLM.from_config(shape(kind, f"{sizes},{overrides}")).eval()
    assert documents_apart(model, position_ids=POSITIONS) == apart
    with torch.no_grad():
        one, other = (
            model(torch.tensor([[*first, 1, 5, 6, 7]]), position_ids=POSITIONS, use_cache=False).logits[0, 4:]
            for first in ([1, 2, 3, 4], [0, 0, 0, 0])
        )
    assert (one - other).abs().max() < ROUNDING


def test_a_shape_that_cannot_be_built_is_one_line():
    from lm_trials.models.shapes import build_model

    assert "plbart cannot be built from this configuration (ValueError: " in refusal(build_model, shape("plbart"), 0)


def documents(count=40):
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 30, (count,), generator=generator)
    return [[1, *torch.randint(3, 64, (int(length),), generator=generator).tolist()] for length in lengths]


def exact_loss(model, blocks):
    """Sum of negative log-likelihoods over the number of predicted tokens, in double precision, without labels."""
    nats, tokens = 0.0, 0
    model = model.double().eval()
    for block in blocks:
        ids = torch.as_tensor(block["input_ids"])[None]
        places = {name: torch.as_tensor(value)[None] for name, value in block.items() if name == "position_ids"}
        with torch.no_grad():
            log_probs = model(ids, use_cache=False, **places).logits[0, :-1].log_softmax(-1)
        nats -= float(log_probs.gather(-1, ids[0, 1:, None]).sum())
        tokens += ids.shape[1] - 1
    return nats / tokens


@pytest.mark.parametrize("across", [True, False])
@pytest.mark.parametrize("kind", FAMILIES)
def test_trainers_loss_is_our_sum_over_predicted_tokens(kind, across, tmp_path):
    """Of accumulated batches too, whether or not positions start anew with each document; all weights learn."""
    given = {"max_steps": 1, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "report_to": "none"}
    args = RunArguments(output_dir=str(tmp_path), logging_steps=1, disable_tqdm=True, save_strategy="no", **given)
    blocks = TrainingBlocks(tiny_store(documents()), 16, 4, data_seed=0, attention_across_documents=across)
    model = tiny_family(kind)
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    trainer = StoryTrainer(model=model, args=args, train_dataset=blocks, eval_block_size=32)
    trainer.train()
    logged = next(row["loss"] for row in trainer.state.log_history if "loss" in row)
    exact = exact_loss(tiny_family(kind), blocks)
    assert logged == pytest.approx(exact, abs=1e-5)
    assert logged != pytest.approx(exact * 15 / 16, abs=1e-3)
    other = TrainingBlocks(tiny_store(documents()), 16, 4, data_seed=0, attention_across_documents=not across)
    assert exact_loss(tiny_family(kind), other) != pytest.approx(exact, abs=1e-3)
    assert [name for name, tensor in model.named_parameters() if torch.equal(tensor, before[name])] == []


@peft_warns
@pytest.mark.parametrize("kind", FAMILIES)
def test_every_adapter_of_the_default_targets_gets_a_gradient(kind):
    adapted = add_lora(tiny_family(kind), LoraSpec(r=2), seed=0).train()
    adapted(input_ids=TEXT, labels=TEXT).loss.backward()
    matrices = {name: tensor for name, tensor in adapted.named_parameters() if "lora_B" in name}
    assert len(matrices) == 2 * (4 if kind == "gpt_neox" else 7)
    assert all(tensor.grad.abs().max() > 0 for tensor in matrices.values())
    assert not any("embed" in name or "lm_head" in name for name in matrices)


def test_a_type_that_peft_refuses_is_one_line():
    model = AutoModelForCausalLM.from_config(shape("mamba"))
    spec = LoraSpec(r=2, target_modules=("out_proj",))
    assert refusal(add_lora, model, spec, seed=0).startswith("--lora_target_modules out_proj: ")


@torch.no_grad()
@pytest.mark.parametrize("kind", FAMILIES)
def test_what_is_captured_is_what_the_model_computes(kind):
    model = tiny_family(kind, "sliding_window=4" if kind == "gemma3_text" else "")
    assert check_capture(model, TEXT[0].tolist(), tuple(SITES)).largest < 1e-5
    anatomy = anatomy_of(model)
    with Capture(model, tuple(SITES)) as capture:
        model(input_ids=TEXT)
    found = capture.activations
    model.set_attn_implementation("eager")
    own = model(input_ids=TEXT, output_hidden_states=True, output_attentions=True)
    for layer in range(2):
        torch.testing.assert_close(found.of("hidden", layer), own.hidden_states[layer][0])
        torch.testing.assert_close(found.of("attention", layer)[0], own.attentions[layer][0])
        gained = found.of("hidden", layer + 1) - found.of("hidden", layer)
        parts = [found.of(site, layer) for site in ("attention_output", "mlp")]
        torch.testing.assert_close(sum(parts), gained, rtol=1e-4, atol=1e-4)
        assert min(float(part.abs().max()) for part in parts) > 1e-2
        assert found.of("heads", layer).shape[1] == anatomy.projection(layer).weight.shape[1]
    torch.testing.assert_close(found.of("normed", 2), own.hidden_states[-1][0])
    assert (found.of("hidden", 2) - own.hidden_states[-1][0]).abs().max() > 0.1
    torch.testing.assert_close(anatomy.head(found.of("normed", 2)), own.logits[0])
    # What the last token sees of the others: its weights times all values, of layers with a window too.
    heads, values = model.config.num_attention_heads, found.of("values", 0)
    values_NHE = values.repeat_interleave(heads // values.shape[1], dim=1)
    mixed = torch.einsum("hqk,khe->qhe", found.of("attention", 0)[0], values_NHE).flatten(1)
    torch.testing.assert_close(mixed, found.of("heads", 0), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["gemma3_text", "olmo2"])
def test_what_is_swapped_is_what_is_captured(kind):
    """Behind the norms, where these types add it to the hidden states."""
    model, other = tiny_family(kind), tiny_family(kind, seed=1)
    for site in ("attention_output", "mlp"):
        with Capture(other, [site, "hidden"]) as capture:
            other(input_ids=TEXT)
        rows = capture.activations.of(site, 1)
        with Capture(model, [site, "hidden"]) as changed, Patched(model, {ModelPart(site, 1): rows}):
            model(input_ids=TEXT)
        with Capture(model, [site, "hidden"]) as plain:
            model(input_ids=TEXT)
        moved = changed.activations.of("hidden", 2) - plain.activations.of("hidden", 2)
        if site == "mlp":
            torch.testing.assert_close(moved, rows - plain.activations.of("mlp", 1), rtol=1e-4, atol=1e-4)
        assert moved.abs().max() > 1e-2


def completion_loss(folder, data, num_examples):
    """The loss of a run's first examples under its own model, each by itself: a sum over their completions' tokens."""
    described = json.loads((folder / "run.json").read_text())["outcome"]["data"]
    store = ExampleStore(data / described["name"] / described["examples"], "train")
    model, nats, tokens = load_model(resolve_model(str(folder)), torch.float64), 0.0, 0
    for number in row_order(len(store), num_examples, data_seed=42).tolist():
        ids_T, mask_T = torch.from_numpy(store.input_ids(number)), torch.from_numpy(store.completion_mask(number))
        with torch.no_grad():
            log_probs_TV = model(input_ids=ids_T[None]).logits[0, :-1].log_softmax(-1)
        scored_T = -log_probs_TV.gather(-1, ids_T[1:, None])[mask_T[1:] == 1]
        nats, tokens = nats + float(scored_T.sum()), tokens + len(scored_T)
    return nats / tokens


@peft_warns
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind != "gemma3_text")) for kind in FAMILIES]
)
def test_from_nothing_to_an_evaluated_fine_tuned_model(kind, train_flags, tune_flags, tiny_data, tmp_path, capsys):
    """Through the scripts: training, LoRA and full fine-tuning, evaluation, generation."""
    shape = "hidden_size=32,num_hidden_layers=2,num_attention_heads=2"
    more = ("--model_type", kind, "--config_overrides", shape, "--attention_across_documents", "False")
    few = ("--max_eval_samples", "3")
    trained = train_gpt2.main(train_flags("base", *more, *few, "--block_size", "64", "--max_steps", "3"))
    run = json.loads((tmp_path / "base" / "run.json").read_text())["outcome"]
    assert (run["model_type"], run["model"]["model_type"], run["model"]["vocab_size"]) == (kind, kind, 400)
    assert "max_position_embeddings 256" in " ".join(capsys.readouterr().out.split())
    base = str(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(base)
    for how in ("lora", "full"):
        more = (*few, "--model_name_or_path", base, *(("--full_finetune", "True") if how == "full" else ()))
        before = sft_lora.main(tune_flags(f"{how}-still", *more, "--max_steps", "1", "--learning_rate", "0"))
        log = json.loads((tmp_path / f"{how}-still" / "trainer_state.json").read_text())["log_history"]
        assert log[0]["loss"] == pytest.approx(completion_loss(tmp_path / f"{how}-still", tiny_data, 4), abs=1e-5)
        after = sft_lora.main(tune_flags(how, *more))
        assert log[0]["loss"] != pytest.approx(completion_loss(tmp_path / how, tiny_data, 4), abs=1e-3)
        assert after["eval_loss"] < before["eval_loss"]
        tuned = load_model(resolve_model(str(tmp_path / how)))
        with torch.no_grad():
            assert not torch.equal(tuned(TEXT).logits, model(TEXT).logits)
    models = ["--model_name_or_path", base, str(tmp_path / "lora"), "--dataset_name", "tiny", *few]
    rows = eval_checkpoint.main(
        [*models, "--block_size", "64", "--data_cache_dir", str(tiny_data), "--matrix_dir", str(tmp_path / "matrix")]
    )
    losses = [row["estimate"] for row in rows if row["metric"] == "loss" and row["slice"] == "all"]
    assert losses == [pytest.approx(trained["eval_loss"], abs=1e-6), pytest.approx(losses[1])]
    assert losses[1] != pytest.approx(losses[0], abs=1e-3)
    for name in ("base", "lora"):
        flags = ["--model", str(tmp_path / name), "--prompt", "Once", "--max_new_tokens", "5"]
        (text,) = generate.main([*flags, "--mode", "completion"])
        assert text.startswith("Once")
