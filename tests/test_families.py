"""What is promised for every model type, on tiny random models: each promise holds exactly, or is refused in one line.

`docs/families.md` shows the result; `python tests/test_families.py` writes its table.
"""

import dataclasses
import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from tiny_models import tiny_tokenizer
from transformers import AutoConfig

from lm_trials.console import UsageError
from lm_trials.evaluation.generation import write_stories
from lm_trials.evaluation.losses import (
    Document,
    check_causal,
    check_documents_apart,
    packed_windows,
    story_losses,
    token_losses,
)
from lm_trials.models.adapters import LoraSpec, add_lora, merged
from lm_trials.models.reference import load_model, resolve_model
from lm_trials.models.shapes import build_model, dropout_fields
from lm_trials.probing.capture import SITES, check_capture
from lm_trials.tokens.blocks import TrainingBlocks, tiny_store
from lm_trials.training.initial import check_trainable
from lm_trials.training.run_arguments import RunArguments
from lm_trials.training.trainer import StoryTrainer

PAGE = Path(__file__).resolve().parents[1] / "docs" / "families.md"
TOKENIZER = tiny_tokenizer()
SHAPE = {
    "vocab_size": len(TOKENIZER), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
    "bos_token_id": TOKENIZER.bos_token_id, "eos_token_id": TOKENIZER.eos_token_id, "pad_token_id": None,
    "initializer_range": 0.2, "init_std": 0.2, "num_local_experts": 4, "num_experts": 4, "n_routed_experts": 4,
    "num_experts_per_tok": 2, "moe_intermediate_size": 8, "sliding_window": 8,
}  # fmt: skip
MAMBA = {"mamba_d_state": 8, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}
LATENT = {
    "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 4, "head_dim": 4,
    "num_key_value_heads": 4, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1,
}  # fmt: skip
ZAMBA = {
    "num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid"] * 2, "attention_hidden_size": 32,
    "attention_head_dim": 8,
}  # fmt: skip
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2, "linear_num_value_heads": 2,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
# What each type needs beyond `SHAPE` to be tiny, with each of its kinds of layers.
FAMILIES: dict[str, dict] = {
    "llama": {},
    "mixtral": {},
    "mamba": {"state_size": 4, "time_step_rank": 4},
    "jamba": {
        "num_hidden_layers": 3, "attn_layer_period": 3, "attn_layer_offset": 1, "expert_layer_period": 2,
        "mamba_d_state": 4, "mamba_dt_rank": 4,
    },
    "bloom": {},
    "gpt2": {},
    "gpt_neox": {},
    "gemma2": {},
    "apertus": {},
    "bamba": {"attn_layer_indices": [1], **MAMBA},
    "biogpt": {},
    "codegen": {"rotary_dim": 4},
    "cohere": {},
    "cohere2": {},
    "ctrl": {"dff": 32},
    "dbrx": {
        "d_model": 16, "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 16, "ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {**LATENT, "topk_method": "greedy"},
    "deepseek_v3": LATENT,
    "exaone4": {},
    "falcon": {},
    "falcon_h1": {"mamba_d_ssm": 32, **MAMBA},
    "falcon_mamba": {"state_size": 4, "time_step_rank": 4},
    "gemma": {},
    "gemma3_text": {"layer_types": ["sliding_attention", "full_attention"]},
    "glm4": {},
    "gpt_bigcode": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "gpt_oss": {},
    "gptj": {"rotary_dim": 4},
    "granite": {},
    "granitemoe": {},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], "shared_intermediate_size": 16, **MAMBA},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "llama4_text": {"intermediate_size_mlp": 32, "attention_chunk_size": 8},
    "mamba2": {"num_heads": 4, "state_size": 8, "n_groups": 1, "chunk_size": 8},
    "minimax": {"layer_types": ["linear_attention", "full_attention"], "block_size": 8},
    "mistral": {},
    "mpt": {},
    "nemotron": {},
    "olmo": {},
    "olmo2": {},
    "olmoe": {},
    "openai-gpt": {},
    "opt": {"ffn_dim": 32, "word_embed_proj_dim": 16},
    "persimmon": {},
    "phi": {},
    "phi3": {},
    "qwen2": {},
    "qwen2_moe": {"shared_expert_intermediate_size": 8},
    "qwen3": {},
    "qwen3_moe": {},
    "qwen3_next": {"shared_expert_intermediate_size": 8, **LINEAR},
    "recurrent_gemma": {"num_hidden_layers": 3, "lru_width": 16, "attention_window_size": 8},
    "rwkv": {"attention_hidden_size": 16, "context_length": 64},
    "smollm3": {"no_rope_layers": [1, 0]},
    "stablelm": {},
    "starcoder2": {},
    "xglm": {"ffn_dim": 32},
    "zamba": {**ZAMBA, "mamba_d_state": 4, "mamba_dt_rank": 4, "n_mamba_heads": 2},
    "zamba2": {
        **ZAMBA, "mamba_d_state": 8, "n_mamba_heads": 4, "mamba_headdim": 8, "mamba_ngroups": 1, "chunk_size": 8,
        "num_mem_blocks": 1, "adapter_rank": 4,
    },
}  # fmt: skip
ALWAYS = 8  # of these, tested by default


def family(kind):
    """A random model of any type in evaluation mode, with weights large enough for what a token sees to matter."""
    base = AutoConfig.for_model(kind)
    fields = {field.name for field in dataclasses.fields(base)}
    named = {name if name in fields else base.attribute_map.get(name, name): value for name, value in SHAPE.items()}
    values = {name: value for name, value in named.items() if name in fields}
    if not getattr(base, "sliding_window", None):
        values.pop("sliding_window", None)
    config = type(base)(**values | dict.fromkeys(dropout_fields(base), 0.0) | FAMILIES[kind])
    model = build_model(config, seed=0)
    assert model.num_parameters() < 50_000
    return model.eval()


def stories(count, shortest, longest):
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(shortest, longest, (count,), generator=generator).tolist()
    ids = [torch.randint(3, len(TOKENIZER), (length,), generator=generator).tolist() for length in lengths]
    return [[TOKENIZER.bos_token_id, *story] for story in ids]


def documents(*how):
    return [Document(str(number), np.array(ids), 1) for number, ids in enumerate(stories(*how))]


@torch.no_grad()
def logits(model, ids):
    return model(input_ids=torch.as_tensor(ids)[None], use_cache=False).logits[0]


def nats(model, ids):
    return torch.nn.functional.cross_entropy(logits(model, ids)[:-1], torch.as_tensor(ids[1:]), reduction="sum").item()


def same(found, expected):
    """Whether two arrays agree within the rounding of float32."""
    found, expected = torch.as_tensor(found), torch.as_tensor(expected)
    return bool((found - expected).abs().max() <= 1e-4 * max(1.0, float(expected.abs().max())))


def trains(model):
    """One update by the mean loss of the predicted tokens; every weight learns, and is the same after loading."""
    check_trainable(model, "TYPE", documents_apart=False)
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    blocks = TrainingBlocks(tiny_store(stories(20, 3, 30)), 32, 8, data_seed=0)
    expected = sum(nats(model, block["input_ids"].tolist()) for block in blocks) / (8 * 31)
    with TemporaryDirectory() as folder:
        given = {"max_steps": 1, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "logging_steps": 1}
        quiet = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "use_cpu": True}
        args = RunArguments(output_dir=folder, **given, **quiet)
        trainer = StoryTrainer(model=model, args=args, train_dataset=blocks, eval_block_size=32)
        trainer.train()
        trainer.save_model()
        loaded = load_model(resolve_model(folder))
        other = build_model(model.config, seed=1)
        resumed = StoryTrainer(model=other, args=args, train_dataset=blocks, eval_block_size=32)
        resumed._load_from_checkpoint(folder)
    logged = next(row["loss"] for row in trainer.state.log_history if "loss" in row)
    unchanged = [name for name, tensor in model.named_parameters() if torch.equal(tensor, before[name])]
    ids = stories(1, 20, 21)[0]
    assert same(logged, expected), (logged, expected)
    assert unchanged == []
    for saved in (loaded, other):
        assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in saved.state_dict().items())
    assert same(logits(loaded, ids), logits(model.eval(), ids))


def keeps_documents_apart(model):
    """The losses of stories in one block, each as by itself; refused where a story sees the one before."""
    check_documents_apart(model, "TYPE")
    given = documents(6, 3, 8)
    (window,) = packed_windows(enumerate(given), 64, attention_across_documents=False)
    ((losses, _),) = token_losses(model, [window])
    for number, document in enumerate(given):
        own = losses[window.owners_T == number][: len(document.input_ids) - 1]
        assert same(own.sum(), nats(model, document.input_ids)), number


def evaluates(model):
    """The losses of stories, some longer than a window, each as by itself."""
    check_causal(model, "TYPE")
    given = documents(12, 3, 80)
    one, many = (
        [story.nats for story in story_losses(model, given, 64, batch_size=batch_size)] for batch_size in (1, 8)
    )
    assert same(one, many)
    assert same(one[0], nats(model, given[0].input_ids))


def generates(model):
    """Stories in batches of different prompts, each as by itself, and the likeliest token each time without a cache."""
    prompts = [ids[:length] for ids, length in zip(stories(4, 20, 30), (3, 9, 1, 3), strict=True)]

    def write(batch_size, temperature):
        return write_stories(model, TOKENIZER, prompts, 8, temperature, batch_size=batch_size)

    assert write(1, 1.0) == write(4, 1.0)
    greedy = write(4, 0.0)
    for prompt, written in zip(prompts, greedy, strict=True):
        found = logits(model, prompt + written).argmax(dim=-1).tolist()[len(prompt) - 1 :]
        assert written == found[: len(written)]
        assert len(written) == 8 or found[len(written)] in (TOKENIZER.bos_token_id, TOKENIZER.eos_token_id)
    assert len({tuple(written) for written in greedy}) > 1


def is_captured(model):
    """All sites, without a change of the log-probabilities."""
    check_capture(model, stories(1, 20, 21)[0], tuple(SITES))


def takes_lora(model):
    """Adapters of the default targets, each with a gradient, which change the model and are the same when merged."""
    ids = stories(1, 40, 41)[0]
    adapted = add_lora(model, LoraSpec(r=2), seed=0).train()
    adapted(input_ids=torch.tensor([ids]), labels=torch.tensor([ids]), use_cache=False).loss.backward()
    matrices = {name: tensor for name, tensor in adapted.named_parameters() if "lora_B" in name}
    untrained = [name for name, tensor in matrices.items() if tensor.grad is None or not tensor.grad.abs().max() > 0]
    assert matrices
    assert untrained == []
    torch.manual_seed(0)
    for tensor in matrices.values():
        torch.nn.init.normal_(tensor, std=0.3)
    changed = logits(adapted.eval(), ids)
    with adapted.disable_adapter():
        assert not same(changed, logits(adapted, ids))
    assert same(logits(merged(adapted, "TYPE"), ids), changed)


COLUMNS = {
    "trains": trains,
    "documents apart": keeps_documents_apart,
    "evaluates": evaluates,
    "generates": generates,
    "is captured": is_captured,
    "takes LoRA": takes_lora,
}


def cell(kind, promise):
    """`exact`, or the reason of the refusal without its advice, in which the model is called TYPE."""
    model = family(kind)
    try:
        promise(model)
    except UsageError as error:
        reason = str(error)
    else:
        return "exact"
    assert "\n" not in reason
    reason = re.sub(rf"\b({kind}|{type(model).__name__})\b", "TYPE", reason)
    return re.sub(r"\d+\.\d+", "N", reason).removeprefix("TYPE: ").partition(";")[0]


def read_page():
    """The table of the page: the cells of each type, with the reasons that its numbers stand for."""
    text = PAGE.read_text(encoding="utf-8").partition("| model type |")[2]
    reasons = {number: reason for number, reason in re.findall(r"^(\d+)\. `(.*)`$", text, re.MULTILINE)}
    rows = re.findall(r"^\| `(\S+)` \| (.*) \|$", text, re.MULTILINE)
    return {
        kind: [
            reasons[found[1]] if (found := re.match(r"refused \((\d+)\)", part)) else part
            for part in cells.split(" | ")
        ]
        for kind, cells in rows
    }


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")  # read by PEFT 0.21
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] * (n >= ALWAYS)) for n, kind in enumerate(FAMILIES)]
)
def test_every_promise_holds_exactly_or_is_refused_as_the_page_says(kind):
    assert [cell(kind, promise) for promise in COLUMNS.values()] == read_page()[kind]


def test_the_page_has_every_type_and_both_kinds_of_cells():
    page = read_page()
    assert list(page) == sorted(FAMILIES)
    assert page["llama"] == ["exact"] * len(COLUMNS)
    assert page["mamba"][1].startswith("--attention_across_documents False has no effect on a TYPE")


def main():
    """Write the table of the page, below what is written by hand."""
    reasons: dict[str, int] = {}
    lines = []
    for kind in sorted(FAMILIES):
        cells = [cell(kind, promise) for promise in COLUMNS.values()]
        shown = [
            text if text == "exact" else f"refused ({reasons.setdefault(text, len(reasons) + 1)})" for text in cells
        ]
        lines.append(f"| `{kind}` | {' | '.join(shown)} |")
        print(lines[-1], file=sys.stderr)
    head = PAGE.read_text(encoding="utf-8").partition("| model type |")[0]
    table = [f"| model type | {' | '.join(COLUMNS)} |", "| --- " * (len(COLUMNS) + 1) + "|", *lines, ""]
    listed = [f"{number}. `{reason}`" for reason, number in reasons.items()]
    PAGE.write_text(
        head + "\n".join([*table, "The reasons, with TYPE for the model:", "", *listed, ""]), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
