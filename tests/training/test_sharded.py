"""Weights sharded over processes (ZeRO-3): every process makes the same number of forward passes."""

import json
import math

import numpy as np
import pytest
import torch
from killed_runs import Processes
from safetensors.torch import load_file
from tiny_models import tiny_model

from lm_trials.evaluation.losses import Document, per_story_windows, story_losses
from lm_trials.evaluation.losses import Processes as Sharing
from lm_trials.evaluation.summary import store_documents
from lm_trials.tokens.stores import TokenStore
from lm_trials.tokens.tokenizers import load_tokenizer, tokenizer_hash

ZERO_3 = {
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "zero_force_ds_cpu_optimizer": False,
    "zero_allow_untested_optimizer": True,
    # Without the zeros a tiny model stays whole in each process, and nothing is tested.
    "zero_optimization": {
        "stage": 3,
        "stage3_param_persistence_threshold": 0,
        "stage3_max_live_parameters": 0,
        "stage3_max_reuse_distance": 0,
        "stage3_prefetch_bucket_size": 0,
        "stage3_gather_16bit_weights_on_model_save": True,
    },
}


pytestmark = pytest.mark.end_to_end
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="DeepSpeed would take the GPU")


def both(command, one, two, tmp_path):
    """Return the logs of a run of one process, and of the same in two with sharded weights."""
    (tmp_path / "zero3.json").write_text(json.dumps(ZERO_3))
    two = [*two, "--per_device_train_batch_size", "2", "--ddp_backend", "gloo"]
    arguments = [command, two, str(tmp_path / "zero3.json"), str(tmp_path / "sizes")]
    running = Processes("sharded", arguments, tmp_path / "two.log", world_size=2)
    Processes(command, [one], tmp_path / "one.log").finish()
    running.finish()
    for rank in range(2):  # the weights are sharded at each evaluation
        sizes = json.loads((tmp_path / f"sizes-{rank}.json").read_text())
        assert len(sizes) == 2
        assert {size for weights in sizes for size in weights} == {0}
    return [json.loads((tmp_path / name / "trainer_state.json").read_text())["log_history"] for name in ("one", "two")]


def numbers(log, name):
    return [row[name] for row in log if name in row]


@no_gpu
def test_a_sharded_training_evaluates_and_generates_as_one_process_does(train_flags, tiny_data, tmp_path):
    """Without the same number of passes in both processes it aborts: one waits for weights, the other for losses."""
    same = ("--max_eval_samples", "3", "--per_device_eval_batch_size", "32", "--learning_rate", "1e-2")
    same += ("--eval_strategy", "steps", "--eval_steps", "2", "--num_sampled_stories", "1", "--sample_tokens", "8")
    # Other tests may have made more stores.
    tokens = tokenizer_hash(load_tokenizer(tiny_data / "tok400"))
    (store,) = tiny_data.glob(f"tiny/tokens-{tokens}")
    documents = store_documents(TokenStore.open(store, "validation"), 3)
    assert math.ceil(len(list(per_story_windows(enumerate(documents), 32))) / 32) == 3  # one process has a batch more
    one, two = both("train", train_flags("one", *same), train_flags("two", *same), tmp_path)
    losses = numbers(one, "eval_loss")
    assert numbers(two, "eval_loss") == pytest.approx(losses, rel=1e-5)
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)
    assert numbers(two, "eval_story_0") == numbers(one, "eval_story_0")
    assert numbers(two, "loss")[0] == pytest.approx(numbers(one, "loss")[0], rel=1e-6)  # the same initial weights


@pytest.mark.slow
@no_gpu
@pytest.mark.parametrize("full", ["True", "False"])
def test_a_sharded_fine_tuning_evaluates_as_one_process_does(tune_flags, tmp_path, full):
    same = ("--full_finetune", full, "--eval_strategy", "steps", "--eval_steps", "2", "--learning_rate", "1e-3")
    same += ("--max_eval_samples", "5", "--per_device_eval_batch_size", "8")  # one batch for two processes
    one, two = both("tune", tune_flags("one", *same), tune_flags("two", *same), tmp_path)
    assert numbers(two, "eval_loss") == pytest.approx(numbers(one, "eval_loss"), rel=1e-5)
    (whole,), (gathered,) = ((tmp_path / name).glob("*model.safetensors") for name in ("one", "two"))
    whole, gathered = load_file(whole), load_file(gathered)
    assert whole.keys() == gathered.keys()
    assert all(torch.allclose(whole[name], gathered[name], atol=1e-5) for name in whole)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("documents", [1, 4, 7, 23])
def test_every_process_makes_the_same_number_of_passes(count, documents):
    model, passes = tiny_model("llama"), []
    model.register_forward_hook(lambda *_: passes.append(1))
    stories = [Document(str(n), np.arange(1, 5 + n % 5), 4) for n in range(documents)]
    found = []
    for index in range(count):
        passes.clear()
        list(story_losses(model, stories, 8, batch_size=2, processes=Sharing(index, count, lambda own: own)))
        found.append(len(passes))
    assert len(set(found)) == 1
    assert found[0] == math.ceil(math.ceil(documents / 2) / count)
