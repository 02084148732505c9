"""Every program on a device that is not the CPU: no float64, no host tensor among its own, no needless waits."""

import itertools
import json
import random
import shlex
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from fake_device import MPS, DeviceError, FakeDevice
from matplotlib.figure import Figure
from small_models import with_lora
from tiny_models import TEXT, tiny_model, tiny_tokenizer
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import DefaultFlowCallback, PrinterCallback
from trl import SFTConfig, SFTTrainer

import cache_datasets
from lm_trials import cli
from lm_trials.probing.weights.edits import Gates
from lm_trials.tokens.tokenizers import train_tokenizer
from lm_trials.training import tuning_examples
from lm_trials.training.resumption import ExactResume

# PEFT 0.21 and TRL 1.16 ask transformers 5.23 by a name that is to go.
pytestmark = [pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated"), pytest.mark.end_to_end]
WORDS = [word for word in TEXT.replace("!", "").replace(".", "").split() if word.islower()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Llamas `a` and `b`, an adapter of `a`, `c` and `d` with a word for each token, stories, pairs and distances."""
    place, draws = tmp_path_factory.mktemp("devices"), random.Random(0)
    vocabulary = ["".join(letters) for letters in itertools.product("bdfg", "o", "lmnp", "a", "rst")]
    words = train_tokenizer([f"the {word} saw" for word in vocabulary] * 5, vocab_size=500)
    for seed, name in enumerate("abcd"):
        tokenizer = words if name in "cd" else tiny_tokenizer()
        tiny_model("llama", vocab_size=len(words), positions=160, seed=seed).save_pretrained(place / name)
        tokenizer.save_pretrained(place / name)
    base = tiny_model("llama", vocab_size=len(words), positions=160)
    base.name_or_path = str(place / "a")
    with_lora(base, "q_proj", "down_proj").save_pretrained(place / "adapter")
    tiny_tokenizer().save_pretrained(place / "adapter")
    told = [" ".join(draws.choices(WORDS, k=6 + number % 9)) for number in range(200)]
    stories = [{"story": story, "features": ["Twist"][: number // 2 % 2]} for number, story in enumerate(told)]
    pairs = [{"prompt": f"a {word}", "completion": "the cat sat"} for word in sorted(set(WORDS))]
    for name, rows in (("stories", stories), ("more", stories[:60]), ("pairs", pairs)):
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cache_datasets.main(["distances", "--placeholder", "foo", "--data_cache_dir", str(place)])
    return place


STORIES = "--dataset_name {folder}/stories.jsonl"
RUN = "--max_steps 2 --logging_steps 1 --per_device_train_batch_size 2 --report_to none --learning_rate 1e-3"
SHAPE = "hidden_size=16,num_hidden_layers=2,num_attention_heads=2,intermediate_size=32"
TRAIN = f"train --tokenizer_name {{folder}}/a --model_type llama --config_overrides {SHAPE} --block_size 16 {RUN}"
PAIRS = "--dataset_name {folder}/pairs.jsonl --validation_split_percentage 30"
TUNE = f"tune --model_name_or_path {{folder}}/a {PAIRS} {RUN}"
MIX = "--dataset_name {folder}/stories.jsonl+{folder}/more.jsonl --data_mix 0.5,0.5 --num_sampled_stories 0"
FEW = f"{STORIES} --max_eval_samples 8"
CASES = [
    f"{TRAIN} {STORIES} --max_eval_samples 3 --num_sampled_stories 1 --sample_tokens 3",
    f"{TRAIN} {MIX} --attention_across_documents False --max_eval_samples 3",
    f"{TUNE} --lora_r 2 --max_length 32 --merge_output {{out}}-merged",
    f"{TUNE} --full_finetune --packing --max_length 32",
    f"evaluate --model_name_or_path {{folder}}/adapter {FEW}",
    f"evaluate --model_name_or_path {{folder}}/a {FEW} --layout packed --attention_across_documents False",
    "generate --model_name_or_path {folder}/adapter --prompt a --max_new_tokens 3 --num_samples 2",
    "latent-city --model_name_or_path {folder}/a --data_cache_dir {folder} --num_choices 1 --num_samples 1 "
    "--max_known 1 --seeds 0 --max_new_tokens 3 --tables_dir {out}",
    f"probe attention --model_name_or_path {{folder}}/adapter {STORIES} --max_eval_samples 20 --text 'a cat' "
    "--num_untrained 2 --induction_sequences 20 --induction_tokens 4 --map_tokens 8",
    f"probe diversity --model_name_or_path {{folder}}/a {STORIES} --num_batches 3 --batch_size 1 --max_length 8 "
    "--fisher_draws 2 --finetune_steps 2 --num_control_batches 0 --random_weights",
    f"probe embeddings --model_name_or_path {{folder}}/a {{folder}}/adapter {STORIES}",
    f"probe embeddings --model_name_or_path {{folder}}/a {STORIES} --which output",
    f"probe feature_probe --model_name_or_path {{folder}}/a {STORIES} --num_shuffles 2 --l2 10 --layers 1 "
    "--validation_split_percentage 20 --features Twist --pooling mean",
    f"probe lens --model_name_or_path {{folder}}/adapter {FEW} --lens_steps 2 --text 'a cat'",
    f"probe patching --model_name_or_path {{folder}}/adapter {{folder}}/a {FEW} --components residual heads --layers 1",
    "probe patching --model_name_or_path {folder}/a --prompt 'a cat' --other_prompt 'a dog' --answer ' sat' "
    "--components mlp --layers 1",
    f"probe similarity --model_name_or_path {{folder}}/c {{folder}}/d {FEW} --measure both --term_a bolar "
    "--term_b bolas --template 'the {{term}} saw' --vocabulary_sample 20 --prompt_layout completion",
    f"probe weights --model_name_or_path {{folder}}/a {{folder}}/adapter {FEW} --directions 1 --draws 2 "
    "--prune_shares 0.1 --ranking_samples 4",
]


def run(case, folder, out, more=""):
    """Run a command line; {folder} is the fixture's, {out} the place of the results."""
    place = "" if case.startswith(("generate", "latent-city")) else "--output_dir {out}"
    return cli.main(shlex.split(f"{case} {place} {more}".format(folder=folder, out=out)))


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Drawing takes most of a probe's time."""
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **settings: Path(path).write_bytes(b""))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.removeprefix("probe ").split()[0])
def test_a_program_runs_on_a_device_without_float64(case, folder, tmp_path):
    with FakeDevice() as device:
        run(case, folder, tmp_path / "out")
    assert {"embedding", "mm"} <= device.operations  # it did run there
    assert device.waits  # and was read


@pytest.mark.parametrize(
    "case", [CASES[4], CASES[6], CASES[11]], ids=lambda case: case.removeprefix("probe ").split()[0]
)
def test_with_use_cpu_nothing_is_on_the_device(case, folder, tmp_path):
    with FakeDevice() as device:
        run(case, folder, tmp_path / "out", "--use_cpu")
    assert not device.operations
    assert not device.waits


REFUSED = {
    f"{TUNE} --load_in_8bit": "--load_in_8bit: bitsandbytes has no kernels for mps; remove it, or add --use_cpu",
    f"{CASES[6]} --load_in_4bit": "--load_in_4bit: bitsandbytes has no kernels for mps; remove it, or add --use_cpu",
    f"{CASES[13]} --load_in_8bit": "--load_in_8bit: bitsandbytes has no kernels for mps; remove it, or add --use_cpu",
    f"{TRAIN} {STORIES} --bf16 True": "--bf16 True: this GPU does not compute in bfloat16",
    f"{TRAIN} {STORIES} --fsdp full_shard": "--fsdp shards a model over the GPUs of several processes, and this run is",
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_device_cannot_do_is_one_line_before_any_work(case, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tuning_examples, "open_examples", None)  # no data are read yet
    with FakeDevice() as device:
        torch.backends.mps.is_macos_or_newer.return_value = False
        with pytest.raises(SystemExit) as left:
            run(case, folder, tmp_path / "out")
    assert left.value.code == 2
    assert f"error: {REFUSED[case]}" in capsys.readouterr().err.splitlines()[-1]
    assert not device.operations
    assert not (tmp_path / "out").exists()


def test_an_evaluation_on_the_device_has_the_numbers_of_the_cpu(folder, tmp_path):
    """The fake device computes what the CPU does: a sum in another order, or in float32, would change a bit."""
    case = CASES[4]
    plain = run(case, folder, tmp_path / "cpu")
    with FakeDevice():
        assert run(case, folder, tmp_path / "mps") == plain
    assert run(case.replace("adapter", "b"), folder, tmp_path / "b") != plain


def refused(device):
    """What a real device refuses, and beside each what it takes."""
    there, here = torch.ones(3, device=device), torch.ones(3)
    return [
        (lambda: there.double(), lambda: there.cpu().double()),
        (lambda: there.sum(dtype=torch.float64), lambda: there.sum().cpu().double()),
        (lambda: there.to("cpu", torch.float64), lambda: there.to("cpu", torch.float32)),
        (lambda: here.double().to(device), lambda: here.double().to(device, torch.float32)),
        (lambda: torch.zeros(3, dtype=torch.float64, device=device), lambda: torch.zeros(3, device=device)),
        (lambda: there * here, lambda: there * here.to(there)),
        (lambda: here.add_(there), lambda: here.copy_(there)),
        (lambda: there * torch.ones(3), lambda: there * torch.ones(())),
        (lambda: here[there.long() - 1], lambda: there[here.long() - 1]),
        (lambda: there.numpy(), lambda: there.cpu().numpy()),
        (lambda: torch.rand(3, device=device, generator=torch.Generator()), lambda: torch.rand(3, device=device)),
        (lambda: torch.cat([there, here]), lambda: torch.cat([there, torch.ones_like(there)])),
    ]


@pytest.mark.parametrize("number", range(12))
def test_the_fake_device_refuses_what_a_real_one_refuses(number):
    with FakeDevice():
        wrong, right = refused(MPS)[number]
        right()
        with pytest.raises(DeviceError):
            wrong()


def test_the_fake_device_sees_backward_passes():
    with FakeDevice() as device:
        weight = torch.ones(3, device=MPS, requires_grad=True)
        loss = (weight * 2).sum()
        loss.backward()
        assert weight.grad.device == MPS
        assert weight.grad.cpu().tolist() == [2, 2, 2]
        device.operations.clear()
        wide = torch.ones(3, requires_grad=True)
        wide.double().sum().backward()  # on the host all is allowed
        assert not device.operations
        narrow = torch.ones(3, device=MPS, requires_grad=True) * 1
        narrow.register_hook(lambda gradient: gradient.double())
        with pytest.raises(DeviceError, match="float64"):
            narrow.sum().backward()


def test_float64_on_the_device_stops_a_program(folder, tmp_path, monkeypatch):
    """The control: losses that are widened before they are moved."""
    loss = torch.nn.functional.cross_entropy
    monkeypatch.setattr(torch.nn.functional, "cross_entropy", lambda *args, **kwargs: loss(*args, **kwargs).double())
    with pytest.raises(DeviceError, match="float64 on the device"), FakeDevice():
        run(CASES[4], folder, tmp_path)


def test_a_host_tensor_among_those_of_the_device_stops_a_program(folder, tmp_path, monkeypatch):
    """The control: gates that were left on the host."""

    def ones(gates, *batch, requires_grad=False):
        return [torch.ones(*batch, units, requires_grad=requires_grad) for units in gates.units]

    monkeypatch.setattr(Gates, "ones", ones)
    with pytest.raises(DeviceError, match=r"a host tensor .* meets a device tensor"), FakeDevice():
        run(CASES[-1], folder, tmp_path)


def waits_by_update(monkeypatch, train):
    """Where the host waits for the device in each update of a training but the first."""
    marks, flow = [], DefaultFlowCallback.on_step_end

    def on_step_end(*args, **kwargs):
        marks.append(len(device.waits))
        return flow(*args, **kwargs)

    with monkeypatch.context() as patches, FakeDevice() as device:
        patches.setattr(DefaultFlowCallback, "on_step_end", on_step_end)
        train()
    return [Counter(device.waits[start:end]) for start, end in itertools.pairwise(marks)]


UPDATES = "--max_steps 3 --logging_steps 100 --gradient_accumulation_steps 2"


def train_with_the_library(case, out):
    """Train with Trainer or SFTTrainer as they are."""
    given = {"max_steps": 3, "logging_steps": 100, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}
    given |= {
        "output_dir": str(out),
        "report_to": "none",
        "dataloader_pin_memory": False,
        "bf16": False,
        "disable_tqdm": True,
    }
    model = tiny_model("llama", vocab_size=330, dropout=0.0)
    if case.startswith("tune"):
        rows = [{"input_ids": [1] * length} for length in range(5, 17)]  # all of different length: padded, as ours
        given |= {"dataset_kwargs": {"skip_prepare_dataset": True}, "remove_unused_columns": False, "max_length": 32}
        data = {"train_dataset": Dataset.from_list(rows), "processing_class": tiny_tokenizer()}
        SFTTrainer(with_lora(model, "q_proj"), SFTConfig(**given), **data).train()
    else:
        rows = [{"input_ids": [1] * 16, "labels": [1] * 16}] * 12
        Trainer(model, TrainingArguments(**given), train_dataset=rows).train()


@pytest.mark.parametrize("case", [f"{TRAIN} {MIX}", f"{TUNE} --max_length 32"], ids=["train", "tune"])
def test_an_update_waits_for_the_device_no_more_than_the_librarys(case, folder, tmp_path, monkeypatch):
    ours = waits_by_update(monkeypatch, lambda: run(case, folder, tmp_path, UPDATES))
    theirs = waits_by_update(monkeypatch, lambda: train_with_the_library(case, tmp_path / "theirs"))
    assert len(ours) == len(theirs) == 2
    assert all(theirs)
    assert not any(found - allowed for found, allowed in zip(ours, theirs, strict=True))


def test_a_wait_in_an_update_is_found(tmp_path, monkeypatch):
    """The control: a callback that reads a number of the device."""

    def on_step_end(progress, args, state, control, model, **kwargs):
        model.get_output_embeddings().weight.sum().item()

    monkeypatch.setattr(PrinterCallback, "on_step_end", on_step_end)
    for found in waits_by_update(monkeypatch, lambda: train_with_the_library("train", tmp_path)):
        assert [times for line, times in found.items() if ".sum().item()" in line] == [1]


def test_progress_has_the_random_state_of_the_device():
    """Trainer saves that of every other device; without it, dropout draws other masks after a resume."""
    trainer = ExactResume.__new__(ExactResume)
    trainer._tr_loss, trainer._total_loss_scalar, trainer._globalstep_last_logged = torch.tensor(0.5), 1.0, 3
    with FakeDevice() as device:
        trainer.args = SimpleNamespace(device=torch.device("cpu"))
        elsewhere = trainer.progress()
        trainer.args = SimpleNamespace(device=MPS)
        saved = json.loads(json.dumps(trainer.progress()))
        trainer.restore_progress([saved])
        trainer.restore_progress([elsewhere])
    assert saved == elsewhere | {"mps_random": list(range(44))}
    assert [state.tolist() for state in device.random_states] == [saved["mps_random"]]
