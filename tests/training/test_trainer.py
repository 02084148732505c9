"""What `StoryTrainer` adds to Trainer, and the defects of the stock one that it closes."""

import math

import numpy as np
import pytest
import torch

from lm_trials.evaluation.sentences import SentenceTokens
from lm_trials.models.shapes import build_config, build_model
from lm_trials.tokens.blocks import TrainingBlocks, tiny_store
from lm_trials.tokens.tokenizers import batch_encoder, train_tokenizer
from lm_trials.training.run_arguments import RunArguments
from lm_trials.training.trainer import StoryTrainer

SHAPES = {
    "llama": "hidden_size=32,num_hidden_layers=2,num_attention_heads=2,intermediate_size=64",
    "gpt2": "n_embd=32,n_layer=2,n_head=2",
}


def stories(count=40, seed=0):
    rng = np.random.default_rng(seed)
    return [[1, *rng.integers(3, 300, size=rng.integers(3, 30)).tolist()] for _ in range(count)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["a cat sat on a mat and a dog ran"] * 9, vocab_size=320)


def make_trainer(tmp_path, tokenizer, model_type="llama", **more):
    config = build_config(
        model_type, None, SHAPES[model_type], vocab_size=300, block_size=32, bos_token_id=1, eos_token_id=2, dropout=0.0
    )
    model = build_model(config, seed=0)
    assert model.num_parameters() < 100_000
    given = {"max_steps": 2, "per_device_train_batch_size": 4, "save_strategy": "no", "report_to": "none", "seed": 0}
    args = RunArguments(output_dir=str(tmp_path), logging_steps=1, disable_tqdm=True, **(given | more))
    store = tiny_store(stories())
    blocks = TrainingBlocks(store, 16, args.max_steps * args.per_device_train_batch_size, args.data_seed)
    return StoryTrainer(
        model=model,
        args=args,
        train_dataset=blocks,
        eval_dataset=tiny_store(stories(25, seed=1)),
        processing_class=tokenizer,
        eval_block_size=32,
    )


def by_hand(model, documents):
    """Sum over sum, in float64, one story at a time."""
    model = model.double().eval()
    nats = tokens = 0.0
    with torch.no_grad():
        for ids in documents:
            row = torch.tensor([ids])
            log_p = model(row).logits[0, :-1].log_softmax(-1)
            nats -= float(log_p[torch.arange(len(ids) - 1), row[0, 1:]].sum())
            tokens += len(ids) - 1
    return nats / tokens


@pytest.mark.end_to_end
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_evaluation_is_sums_over_tokens_for_any_batch_size(tmp_path, tokenizer, model_type):
    found = [
        make_trainer(tmp_path, tokenizer, model_type, per_device_eval_batch_size=size).evaluate()["eval_loss"]
        for size in (1, 4, 25)
    ]
    expected = by_hand(make_trainer(tmp_path, tokenizer, model_type).model, stories(25, seed=1))
    assert found == pytest.approx([expected] * 3, abs=1e-6)
    means = [by_hand(make_trainer(tmp_path, tokenizer, model_type).model, [ids]) for ids in stories(25, seed=1)]
    assert np.mean(means) != pytest.approx(expected, abs=1e-4)  # a mean of means is another number


@pytest.mark.end_to_end
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_the_logged_training_loss_is_the_mean_over_predicted_tokens(tmp_path, tokenizer, model_type):
    """P1: a stock GPT-2 logs (L - 1) / L of it."""
    trainer = make_trainer(tmp_path, tokenizer, model_type, max_steps=1)
    blocks = [trainer.train_dataset[n]["input_ids"].tolist() for n in range(4)]
    expected = by_hand(make_trainer(tmp_path, tokenizer, model_type).model, blocks)
    trainer.train()
    logged = next(row["loss"] for row in trainer.state.log_history if "loss" in row)
    assert logged == pytest.approx(expected, abs=1e-5)
    assert logged != pytest.approx(expected * 15 / 16, abs=1e-3)


@pytest.mark.end_to_end
def test_logs_count_tokens(tmp_path, tokenizer):
    trainer = make_trainer(tmp_path, tokenizer)
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert [row["tokens_seen"] for row in rows] == [64, 128]
    assert all(row["tokens_per_second"] > 0 for row in rows)
    assert "mfu" not in rows[0]  # nobody states a CPU's peak


def test_speed_after_a_resume_counts_the_updates_since(tmp_path, tokenizer):
    """The clock starts where training begins; with 100 updates done before, they would be counted too."""
    from transformers import TrainerState

    trainer = make_trainer(tmp_path, tokenizer)
    assert trainer.clock.mark[1] == 0
    trainer.state = TrainerState(global_step=100)
    trainer.callback_handler.on_train_begin(trainer.args, trainer.state, trainer.control)
    assert trainer.clock.mark[1] == 100


@pytest.mark.end_to_end
def test_the_final_metrics_are_not_computed_twice(tmp_path, tokenizer, monkeypatch):
    trainer = make_trainer(tmp_path, tokenizer, eval_strategy="steps", eval_steps=2)
    trainer.train()
    history = len(trainer.state.log_history)
    metrics = trainer.final_metrics()
    assert len(trainer.state.log_history) == history
    assert metrics["eval_perplexity"] == pytest.approx(math.exp(metrics["eval_loss"]))
    trainer.state.global_step += 1
    trainer.final_metrics()
    assert len(trainer.state.log_history) == history + 1


def test_named_sets_are_evaluated_each(tmp_path, tokenizer):
    trainer = make_trainer(tmp_path, tokenizer)
    alone = trainer.evaluate()
    trainer.named_eval_datasets = {"seen": trainer.train_dataset.store, "new": tiny_store(stories(5, seed=3))}
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == alone["eval_loss"]
    assert metrics["eval_seen_samples"] == 40
    assert metrics["eval_new_samples"] == 5
    assert metrics["eval_seen_loss"] != metrics["eval_new_loss"]


@pytest.mark.end_to_end
def test_sentences_are_found_once_and_evaluated_each_time(tmp_path, tokenizer):
    trainer = make_trainer(tmp_path, tokenizer)
    plain = trainer.evaluate()  # without the flag
    texts = ["a cat sat. It turned out that a dog ran. a mat", "a cat sat on a mat"] * 12
    trainer.named_eval_datasets["more"] = tiny_store([[1, *ids] for ids in batch_encoder(tokenizer)(texts)])
    trainer.sentences = SentenceTokens(tokenizer, ("Twist",))
    trainer._parts.clear()
    found, parts = [], trainer.sentences.parts
    trainer.sentences.parts = lambda ids: found.append(ids) or parts(ids)
    first, again = trainer.evaluate(), trainer.evaluate()
    assert len(found) == 25 + 24
    timing = ("runtime", "tokens_per_second", "epoch")
    kept = [{name: str(value) for name, value in each.items() if not name.endswith(timing)} for each in (first, again)]
    assert kept[0] == kept[1]  # as texts: two stories have no interval, and nan is not equal to itself
    assert {name: kept[0][name] for name in plain.keys() & kept[0].keys()} == {
        name: str(value) for name, value in plain.items() if name in kept[0]
    }
    assert (first["eval_more_sentences_Twist_samples"], first["eval_more_sentences_Twist_stories_without"]) == (12, 12)
    assert first["eval_sentences_Twist_samples"] == 0
    assert first["eval_more_sentences_Twist_loss"] != first["eval_more_loss"]
    logged = [row["step"] for row in trainer.state.log_history if "eval_more_sentences_Twist_loss_lower" in row]
    assert logged == [0]


def test_weights_change_and_the_config_is_saved_with_its_cache_on(tmp_path, tokenizer):
    trainer = make_trainer(tmp_path, tokenizer)
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    assert all(not torch.equal(before[name], weight) for name, weight in trainer.model.named_parameters())
    trainer.save_model()
    assert trainer.model.config.use_cache is False  # as Trainer wants it while it trains
    from transformers import AutoConfig

    assert AutoConfig.from_pretrained(tmp_path).use_cache is True
