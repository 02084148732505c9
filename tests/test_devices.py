"""Every program on a device other than the CPU: nothing in float64 there, no host tensor among its own, no more waits."""

import itertools
import json
import random
import shlex

import pytest
import torch
from fake_device import DeviceError, FakeDevice
from small_models import with_lora
from tiny_models import TEXT, tiny_model, tiny_tokenizer

from lm_trials import cli
from lm_trials.probing import findings
from lm_trials.tokens.tokenizers import train_tokenizer

# PEFT 0.21 asks transformers 5.23 by a name that is to go.
pytestmark = [pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated"), pytest.mark.end_to_end]
WORDS = [word for word in TEXT.replace("!", "").replace(".", "").split() if word.islower()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two Llamas, an adapter of the first, and stories of which every second one has a Twist."""
    place, tokenizer, draws = tmp_path_factory.mktemp("devices"), tiny_tokenizer(), random.Random(0)
    for seed, name in enumerate(("a", "b")):
        tiny_model("llama", vocab_size=330, positions=96, seed=seed).save_pretrained(place / name)
        tokenizer.save_pretrained(place / name)
    base = tiny_model("llama", vocab_size=330, positions=96)
    base.name_or_path = str(place / "a")
    with_lora(base, "q_proj", "down_proj").save_pretrained(place / "adapter")
    tokenizer.save_pretrained(place / "adapter")
    rows = [
        {"story": " ".join(draws.choices(WORDS, k=6 + number % 9)), "features": ["Twist"][: number // 2 % 2]}
        for number in range(80)
    ]
    (place / "stories.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    vocabulary = [f"{a}o{b}a{c}" for a, b, c in itertools.islice(itertools.product("bdfgk", "lmnp", "rst"), 40)]
    words = train_tokenizer([f"the {word} saw" for word in vocabulary] * 5, vocab_size=500)
    for seed, name in enumerate(("c", "d")):
        tiny_model("llama", vocab_size=len(words), seed=seed).save_pretrained(place / name)
        words.save_pretrained(place / name)
    pairs = [{"prompt": f"a {word}", "completion": "the cat sat"} for word in sorted(set(WORDS))]
    (place / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    return place


RUN = "--max_steps 2 --logging_steps 1 --per_device_train_batch_size 2 --report_to none --learning_rate 1e-3"
DATA = "--dataset_name {folder}/stories.jsonl"
# name: (command, flags); {folder} is the fixture's, {out} the place of the results.
PROGRAMS = {
    "train": f"train {DATA} --tokenizer_name {{folder}}/a --model_type llama --config_overrides "
    "hidden_size=16,num_hidden_layers=2,num_attention_heads=2,intermediate_size=32 --block_size 16 "
    f"--num_sampled_stories 1 --sample_tokens 3 {RUN} --output_dir {{out}}",
    "tune": f"tune --model_name_or_path {{folder}}/a --dataset_name {{folder}}/pairs.jsonl --lora_r 2 {RUN} "
    "--validation_split_percentage 30 --max_length 32 --output_dir {out}",
    "evaluate": f"evaluate --model_name_or_path {{folder}}/adapter {DATA} --output_dir {{out}}",
    "generate": "generate --model_name_or_path {folder}/adapter --prompt a --max_new_tokens 3 --num_samples 2",
    "attention": "probe attention --model_name_or_path {folder}/a {folder}/adapter --num_untrained 2 "
    f"--induction_sequences 8 --induction_tokens 4 --map_tokens 8 --max_eval_samples 16 --text 'a cat' {DATA} --output_dir {{out}}",
    "diversity": f"probe diversity --model_name_or_path {{folder}}/a --num_batches 3 --batch_size 1 --max_length 8 "
    f"--fisher_draws 2 --finetune_steps 2 --num_control_batches 3 --random_weights {DATA} --output_dir {{out}}",
    "embeddings": f"probe embeddings --model_name_or_path {{folder}}/a {{folder}}/b {DATA} --output_dir {{out}}",
    "feature_probe": "probe feature_probe --model_name_or_path {folder}/a --num_shuffles 2 --l2 10 --layers 1 "
    f"--num_train_stories 40 --max_eval_samples 30 "
    "--validation_split_percentage 50 --features Twist {DATA} --output_dir {{out}}",
    "lens": f"probe lens --model_name_or_path {{folder}}/adapter --lens_steps 2 --text 'a cat' {DATA} --output_dir {{out}}",
    "patching": "probe patching --model_name_or_path {folder}/adapter {folder}/a --components residual heads --layers 1 "
    f"--max_eval_samples 4 {DATA} --output_dir {{out}}",
    "patching prompts": "probe patching --model_name_or_path {folder}/a --prompt 'a cat' --other_prompt 'a dog' "
    "--answer ' sat' --components mlp --layers 1 --output_dir {out}",
    "similarity": "probe similarity --model_name_or_path {folder}/c {folder}/d --measure both --max_eval_samples 8 "
    "--term_a bolar --term_b bolas --template 'the {{term}} saw' --vocabulary_sample 20 "
    f"--prompt_layout completion {DATA} --output_dir {{out}}",
    "weights": "probe weights --model_name_or_path {folder}/a {folder}/adapter --directions 1 --draws 2 "
    f"--prune_shares 0.1 --max_eval_samples 4 --ranking_samples 4 {DATA} --output_dir {{out}}",
}


def run(name, folder, out):
    return cli.main(shlex.split(PROGRAMS[name].format(folder=folder, out=out)))


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_runs_on_a_device_without_float64(name, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(findings, "save_pictures", lambda figure, stem: [])
    with FakeDevice() as device:
        run(name, folder, tmp_path / "out")
    assert {"embedding", "mm"} <= device.operations and device.waits  # it did run there, and was read
