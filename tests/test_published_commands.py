"""beyond-scale's own command starts here, and the configuration of its experiment is what was published."""

import json
from pathlib import Path

import pytest

import train_gpt2
from lm_trials.flags import parse_arguments
from lm_trials.models.shapes import count_parameters
from lm_trials.training.flags import DataArguments, ModelArguments
from lm_trials.training.run_arguments import RunArguments
from lm_trials.training.trainer import StoryTrainer

REPOSITORY = Path(__file__).resolve().parents[1]
PUBLISHED = (
    "--config_overrides n_embd=512,n_layer=8,n_head=8 --do_train --do_eval --per_device_train_batch_size 16 "
    "--max_steps 20000 --save_steps 2000 --optim adamw_torch --streaming CacheStream"
)
ARMS = ("pubmed", "uspto", "pubmed_uspto")


class Started(Exception):
    """Training would begin now."""


def test_the_papers_command_starts_a_model_of_its_size(shared_data, tmp_path, monkeypatch):
    seen = {}

    def train(self, resume_from_checkpoint=None):
        seen["parameters"] = count_parameters(self.model).total
        seen["block"] = self.train_dataset[0]["input_ids"].shape
        raise Started

    monkeypatch.setattr(StoryTrainer, "train", train)
    monkeypatch.chdir(tmp_path)
    corpus, tokenizer = shared_data / "corpus_pubmed" / "pubmed.jsonl", shared_data / "gpt2_tokenizer"
    data = ["--dataset_name", str(corpus), "--tokenizer_name", str(tokenizer)]
    with pytest.raises(Started):
        train_gpt2.main([*PUBLISHED.split(), *data, "--run_name", "paper", "--per_device_train_batch_size", "16"])
    assert seen == {"parameters": 51_475_968, "block": (1024,)}
    outcome = json.loads((tmp_path / "runs" / "paper" / "run.json").read_text())["outcome"]
    assert (outcome["num_tokens"], outcome["optim"]) == (20_000 * 16 * 1024, "adamw_torch")


def arm(name):
    config = str(REPOSITORY / "configs" / "diversity_51M.yaml")
    return parse_arguments(
        ["--config", config, "--arm", name], (DataArguments, ModelArguments), "", full=lambda: RunArguments
    )


def test_the_three_arms_are_at_full_size_and_differ_in_their_data_alone():
    tokens, data = set(), {}
    for name in ARMS:
        data_args, model_args, args = arm(name)
        blocks = args.per_device_train_batch_size * args.gradient_accumulation_steps
        tokens.add(args.max_steps * blocks * data_args.block_size)
        assert model_args.config_overrides == "n_embd=512,n_layer=8,n_head=8"
        data[name] = vars(data_args)
    assert tokens == {1_310_720_000}
    different = {key for name in ARMS for key in data[name] if data[name][key] != data["pubmed"][key]}
    assert different == {"dataset_config_name", "data_mix"}


@pytest.mark.parametrize("loss", ["6.4204", "6.4414", "6.1815"])
def test_the_published_losses_stand_beside(loss):
    assert loss in (REPOSITORY / "configs" / "diversity_51M.yaml").read_text()
