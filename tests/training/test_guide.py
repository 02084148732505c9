import re
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lm_trials.models.presets import PRESETS
from lm_trials.models.shapes import build_config, count_parameters, dropout_fields
from lm_trials.training import guide
from lm_trials.training.guide import warnings_for_run

PAGE = (Path(__file__).parents[2] / "docs" / "choosing_sizes.md").read_text()

USUAL = {"num_parameters": 8_335_008, "tokens_per_update": 131_072, "learning_rate": 5e-4, "total_tokens": 10**9}


def table(first_header):
    """Rows of the page's table whose header starts with this column, without code marks and thousands."""
    lines = PAGE.splitlines()
    (start,) = (i for i, line in enumerate(lines) if line.startswith(f"| {first_header} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            return rows
        rows.append([re.sub(r"(?<=\d),(?=\d)", "", cell.strip().strip("`")) for cell in line.strip("|").split("|")])
    return rows


def published():
    rows = table("published shape")
    return [(name, int(update), float(rate), int(tokens)) for name, update, rate, tokens, _ in rows]


def test_the_pages_shapes_are_the_presets():
    rows = {row[0]: row[1:] for row in table("name")}
    assert list(rows) == list(PRESETS)
    for name, (model_type, width, layers, heads, wide, vocabulary, positions, total, inner, source) in rows.items():
        preset = PRESETS[name]
        assert (model_type, source) == (preset.model_type, preset.source)
        assert (int(vocabulary), int(positions)) == (preset.vocab_size, preset.positions)
        given = {"vocab_size": preset.vocab_size, "block_size": preset.positions}
        config = build_config(None, name, None, bos_token_id=1, eos_token_id=2, **given)
        heads_and_groups = [config.num_attention_heads, getattr(config, "num_key_value_heads", None)]
        assert int(heads.split()[0]) == heads_and_groups[0]
        grouped = heads_and_groups[1] not in (None, heads_and_groups[0])
        assert ("(" in heads) == grouped
        assert (int(width), int(layers)) == (config.hidden_size, config.num_hidden_layers)
        assert int(wide) == getattr(config, "intermediate_size", 4 * config.hidden_size)
        with torch.device("meta"):
            count = count_parameters(AutoModelForCausalLM.from_config(config))
        assert (int(total), int(inner)) == (count.total, count.without_embeddings)


def test_the_pages_learning_rates_are_the_guides():
    rows = [
        (float(below.replace("M", "e6").replace("any", "inf")), float(low), float(high))
        for below, low, high in table("parameters below")
    ]
    assert rows == list(guide.LEARNING_RATES)


def test_the_pages_other_limits_are_the_guides():
    assert f"About **{guide.TOKENS_PER_UPDATE:,}** suits" in PAGE
    assert f"from {guide.SMALL_PARAMETERS // 10**6}M parameters up" in PAGE
    assert f"after about {guide.MAX_EPOCHS} little is gained" in PAGE
    rows = {row[0]: row[2].replace("`", "").split(", ") for row in table("type")}
    assert rows == {name: dropout_fields(AutoConfig.for_model(name)) for name in ("gpt2", "llama")}


def test_the_pages_dropout_defaults_are_the_models():
    given = {"vocab_size": 300, "block_size": 16, "bos_token_id": 1, "eos_token_id": 2}
    for model_type, default, _ in table("type"):
        config = build_config(model_type, None, None, **given)
        assert {getattr(config, name) for name in dropout_fields(config)} == {float(default.split(",")[0])}


def test_the_pages_table_is_read_at_all():
    assert len(published()) == 7
    with pytest.raises(ValueError, match="not enough values"):
        table("no such column")


@pytest.mark.parametrize(("name", "tokens_per_update", "learning_rate", "total_tokens"), published())
def test_published_settings_give_no_warning(name, tokens_per_update, learning_rate, total_tokens):
    settings = {"tokens_per_update": tokens_per_update, "learning_rate": learning_rate, "warmup_updates": 1000}
    parameters = PRESETS[name].num_parameters
    assert warnings_for_run(num_parameters=parameters, total_tokens=total_tokens, **settings) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 5e-5}, "--learning_rate 5e-05 is low for 8,335,008 parameters (usual: 0.0003 to 0.002;"),
        ({"learning_rate": 0.1}, "--learning_rate 0.1 is high for 8,335,008 parameters"),
        (
            {"tokens_per_update": 2_048},
            "2,048 tokens per update (usual: 100,000; docs/choosing_sizes.md); raise --gradient",
        ),
        (
            {"tokens_per_update": 2_000_000},
            "2,000,000 tokens per update (usual: 100,000; docs/choosing_sizes.md); lower",
        ),
        ({"total_tokens": 8_000_000}, "8,000,000 tokens for 8,335,008 parameters (usual: 20"),
        ({"dataset_tokens": 10**7}, "100 passes over 10,000,000 training tokens"),
        ({"warmup_updates": 5_000}, "5,000 of 7,629 updates are warm-up"),
        ({"device_type": "cpu", "mixed_precision": "bf16"}, "bf16 on a CPU without bf16 units"),
    ],
)
def test_each_setting_far_off_gets_one_line_of_its_own(changes, message):
    assert warnings_for_run(**USUAL) == []
    (line,) = warnings_for_run(**USUAL | changes)
    assert line.startswith(message)
    assert "docs/choosing_sizes.md" in line
    assert "\n" not in line


@pytest.mark.parametrize(
    "changes",
    [
        {"learning_rate": 3e-4 / 4},  # just inside
        {"learning_rate": 2e-3 * 4},
        {"tokens_per_update": 10_000},
        {"dataset_tokens": 10**8},  # ten passes
        {"device_type": "cpu"},
        {"mixed_precision": "bf16"},
    ],
)
def test_a_matter_of_taste_gets_none(changes):
    assert warnings_for_run(**USUAL | changes) == []


def test_a_demo_may_take_small_updates_and_a_medium_model_may_not():
    small = USUAL | {"tokens_per_update": 2_048, "learning_rate": 2e-3}
    assert warnings_for_run(**small | {"num_parameters": 935_040}) == []
    assert len(warnings_for_run(**small)) == 1


def test_several_mistakes_get_several_lines():
    lines = warnings_for_run(**USUAL | {"learning_rate": 5e-5, "tokens_per_update": 512, "total_tokens": 10**6})
    assert len(lines) == 3
