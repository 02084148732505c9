"""Snapshots are the model's own numbers, and neither they nor a ladder of checkpoints change a bit of a training."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from killed_runs import Training, kill_and_go_on, outcome
from refusals import error_line
from small_models import with_lora
from tiny_models import tiny_model
from transformers import AutoModelForCausalLM, TrainerControl

import sft_lora
import train_gpt2
from lm_trials.data.datasets import open_prepared
from lm_trials.models.reference import checkpoints
from lm_trials.probing.capture import Capture
from lm_trials.snapshots import SNAPSHOTS, open_snapshots
from lm_trials.tokens.tokenizers import load_tokenizer
from lm_trials.training import manifest, snapshots
from lm_trials.training.callbacks import CheckpointLadder
from lm_trials.training.records import records_between
from lm_trials.training.resumption import Interruption
from lm_trials.training.trainer import StoryTrainer

LADDER = ("--save_strategy", "steps", "--save_steps", "5", "--checkpoint_ladder", "True")
ALL = ("--snapshot", ",".join(SNAPSHOTS), "--snapshot_samples", "2")
LONG = ("--max_steps", "11", "--dropout", "0.1")
STEPS = [0, 1, 2, 4, 5, 8, 10, 11]


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def command(train_flags, kept, monkeypatch):
    """The command of a run with dropout, a ladder and all snapshots; and its finished folder, trained once.

    `read.npy` beside it has the ids that the model read, (updates, blocks, tokens).
    """
    argv = [*train_flags("run", *LONG, *LADDER, *ALL), "--output_dir", str(kept / "run")]
    if not (kept / "run").exists():
        seen, compute = [], StoryTrainer.compute_loss
        with monkeypatch.context() as patch:
            patch.setattr(
                StoryTrainer,
                "compute_loss",
                lambda self, model, inputs, *more, **named: (
                    seen.append(inputs["input_ids"].numpy().copy()),
                    compute(self, model, inputs, *more, **named),
                )[1],
            )
            train_gpt2.main(argv)
        np.save(kept / "read.npy", np.stack(seen))
    return argv, kept / "run"


def steps_of(folder):
    return [int(path.name.split("-")[1]) for path in checkpoints(folder)]


def test_a_ladder_is_update_0_powers_of_two_and_every_n(command):
    _, folder = command
    assert steps_of(folder) == open_snapshots(folder).steps == STEPS
    assert [row["since"] for row in open_snapshots(folder).table()] == [None, *STEPS[:-1]]


def plain(model, ids):
    """A forward and a backward pass by transformers alone, the loss in float64."""
    rows = [torch.tensor([row]) for row in ids]
    outputs = [model(row, output_attentions=True, output_hidden_states=True) for row in rows]
    nats = [
        -out.logits[0, :-1].double().log_softmax(-1)[torch.arange(row.shape[1] - 1), row[0, 1:]].sum()
        for row, out in zip(rows, outputs, strict=True)
    ]
    (sum(nats) / sum(len(row) - 1 for row in ids)).backward()
    return outputs, [total.item() / (len(row) - 1) for total, row in zip(nats, ids, strict=True)]


def eager(checkpoint):
    return AutoModelForCausalLM.from_pretrained(checkpoint, attn_implementation="eager")


@pytest.mark.parametrize("step", [0, 11])
def test_a_snapshot_is_what_transformers_returns_for_the_checkpoint(command, step):
    found = open_snapshots(command[1])
    one, other = (found.all[STEPS.index(number)] for number in (step, 8))
    assert one.names == list(SNAPSHOTS)
    model = eager(one.checkpoint)
    outputs, losses = plain(model, [text["input_ids"] for text in one.texts])
    assert [text["loss"] for text in one.texts] == pytest.approx(losses, abs=1e-5)
    assert len(outputs) == 2
    for number, output in enumerate(outputs):
        for name, expected in (("attention", output.attentions), ("activations", output.hidden_states)):
            read = one.read(name)[str(number)]
            assert np.array_equal(read, torch.cat(expected).detach().numpy()), name
            assert not np.allclose(read, other.read(name)[str(number)], atol=1e-5), name
    assert np.array_equal(one.read("embeddings")["weight"], model.get_input_embeddings().weight.detach().numpy())
    same_gradients(one.read("gradients"), model)
    assert not np.allclose(
        one.read("gradients")["model.norm.weight"], other.read("gradients")["model.norm.weight"], rtol=1e-2
    )


def same_gradients(read, model):
    expected = {name: weight.grad.numpy() for name, weight in model.named_parameters() if weight.grad is not None}
    assert read.keys() == expected.keys()
    for name, values in expected.items():
        assert np.allclose(read[name], values, rtol=1e-3, atol=1e-3 * np.abs(values).max()), name


@pytest.mark.parametrize("kind", ["gpt2", "llama", "adapter"])
def test_stories_of_other_lengths_and_models(kind):
    def model(seed=0):
        made = tiny_model("llama" if kind == "adapter" else kind, attention="eager", seed=seed)
        return with_lora(made, "q_proj", "v_proj") if kind == "adapter" else made

    ids = [[1, 5, 9, 33, 7, 2], [1, 8, 8, 40, 41, 42, 43, 3, 11]]
    texts = [snapshots.Text(str(row), np.array(row), np.array([-100, *row[1:]])) for row in ids]
    read, losses = snapshots.taken(model(), texts, SNAPSHOTS)
    expected = model()
    for name, weight in expected.named_parameters():
        weight.requires_grad_(kind != "adapter" or "lora_" in name)
    outputs, nats = plain(expected, ids)
    assert losses == pytest.approx(nats, abs=1e-5)
    for number, output in enumerate(outputs):
        assert torch.equal(read["attention"][str(number)], torch.cat(output.attentions))
        assert torch.equal(read["activations"][str(number)], torch.cat(output.hidden_states))
    same_gradients({name: values.numpy() for name, values in read["gradients"].items()}, expected)
    of_prompt = [text._replace(labels_T=np.where(np.arange(len(text.ids_T)) < 4, -100, text.ids_T)) for text in texts]
    masked, other_losses = snapshots.taken(model(), of_prompt, ["gradients"])
    assert list(masked) == ["gradients"]
    assert other_losses != pytest.approx(losses, abs=1e-3)
    plan = snapshots.Snapshots(SNAPSHOTS, texts, None, None)
    sizes = {name: sum(values.nbytes for values in read[name].values()) for name in SNAPSHOTS}
    assert plan.num_bytes(expected) == sizes


def test_attention_is_that_of_hooks_and_not_of_a_second_pass(command):
    """The source system's stored attention was that of all layers run once more, on the last hidden states."""
    found = open_snapshots(command[1]).all[-1]
    ids_BT = torch.tensor([found.texts[0]["input_ids"]])
    model = AutoModelForCausalLM.from_pretrained(found.checkpoint).eval()
    with torch.no_grad(), Capture(model, ["attention", "hidden", "normed"]) as capture:
        model(input_ids=ids_BT)
    activations, attention = found.read("activations")["0"], found.read("attention")["0"]
    assert attention.shape == (2, 2, 32, 32)
    for block in range(2):
        assert np.allclose(attention[block], capture.activations.of("attention", block)[0], atol=1e-6)
        assert np.allclose(activations[block], capture.activations.of("hidden", block), atol=1e-5)
    assert np.allclose(activations[2], capture.activations.of("normed", 2), atol=1e-5)
    model.set_attn_implementation("eager")
    again = model(inputs_embeds=torch.from_numpy(activations[2:]), output_attentions=True).attentions
    assert not np.allclose(attention, torch.cat(again).detach(), atol=1e-3)


def test_texts_are_the_first_validation_stories(command, tiny_data):
    records = open_prepared("tiny", str(tiny_data), "dataset_name").select("validation", 2).read()
    names = [record["record_id"] for record in records]
    for snapshot in open_snapshots(command[1]).all:
        assert [text["record_id"] for text in snapshot.texts] == names
        assert [text["tokens"][0] for text in snapshot.texts] == ["<s>", "<s>"]
        assert [len(text["input_ids"]) for text in snapshot.texts] == [32, 32]  # the block size


def test_neither_ladder_nor_snapshots_change_a_bit(command, train_flags, tmp_path, monkeypatch):
    """With dropout: one random number drawn by a snapshot would give other weights."""
    train_gpt2.main(train_flags("plain", *LONG))
    straight = outcome(tmp_path / "plain")
    assert outcome(command[1]) == straight
    taken = snapshots.taken
    monkeypatch.setattr(snapshots, "taken", lambda *given: (torch.rand(1), taken(*given))[1])
    train_gpt2.main(train_flags("drawn", *LONG, *LADDER, *ALL, "--save_total_limit", "2"))
    assert outcome(tmp_path / "drawn")[0] != straight[0]
    assert steps_of(tmp_path / "drawn") == [10, 11]  # a limit keeps the newest, of a ladder too


@pytest.mark.parametrize("step", [0, 4])
def test_a_run_resumed_from_any_rung_ends_the_same_with_the_same_rungs(command, tmp_path, step):
    argv, folder = command
    again = tmp_path / "run"
    shutil.copytree(folder, again)
    (again / "finished.json").unlink()
    for path in checkpoints(again)[STEPS.index(step) + 1 :]:
        shutil.rmtree(path)
    train_gpt2.main([*argv, "--output_dir", str(again)])
    assert outcome(again) == outcome(folder)
    assert steps_of(again) == STEPS
    for path in folder.glob("checkpoint-*/snapshot/*"):
        assert (again / path.relative_to(folder)).read_bytes() == path.read_bytes(), path


def test_the_best_model_is_never_one_that_only_the_ladder_saved(train_flags, tmp_path):
    """So a ladder changes no result with --load_best_model_at_end either."""
    best = ("--load_best_model_at_end", "True", "--eval_strategy", "steps", "--eval_steps", "1", "--max_steps", "4")
    # The highest loss counts as the best, which is that of update 1.
    flags = (*best, "--greater_is_better", "True", "--save_strategy", "steps", "--save_steps", "3")
    train_gpt2.main(train_flags("plain", *flags, "--max_eval_samples", "2"))
    train_gpt2.main(train_flags("ladder", *flags, "--max_eval_samples", "2", "--checkpoint_ladder", "True"))
    states = [json.loads((tmp_path / name / "trainer_state.json").read_text()) for name in ("plain", "ladder")]
    assert [state["best_global_step"] for state in states] == [1, 1]
    assert steps_of(tmp_path / "ladder") == [0, 1, 2, 3, 4]
    assert outcome(tmp_path / "ladder") == outcome(tmp_path / "plain")
    first = tmp_path / "ladder" / "checkpoint-1" / "model.safetensors"
    assert first.read_bytes() != outcome(tmp_path / "plain")[0]


@pytest.mark.parametrize(("step", "by_save_steps"), [(2, False), (4, True), (3, False)])
def test_a_rung_after_a_signal_is_no_scheduled_checkpoint_either(step, by_save_steps):
    trainer, state = SimpleNamespace(scheduled=True), SimpleNamespace(global_step=step)
    control, interruption = TrainerControl(should_save=by_save_steps), Interruption(trainer)
    CheckpointLadder(trainer).on_step_end(None, state, control)
    assert control.should_save == (by_save_steps or step == 2)
    interruption.received = 15
    interruption.on_step_end(SimpleNamespace(world_size=1), state, control)
    assert control.should_save
    assert trainer.scheduled == by_save_steps


def test_a_ladder_and_snapshots_are_logistics(command, train_flags, capsys):
    """Without them it is the same run."""
    _, folder = command
    run = json.loads((folder / "run.json").read_text())
    logistics = {"checkpoint_ladder": True, "snapshot": list(SNAPSHOTS), "snapshot_samples": 2}
    assert logistics.items() <= run["logistics"].items()
    assert not logistics.keys() & run["outcome"].keys()
    assert {manifest.role_of(name) for name in logistics} == {"logistics"}
    same = [*train_flags("run", *LONG), "--output_dir", str(folder)]
    train_gpt2.main(same)
    assert "is already finished" in capsys.readouterr().out
    assert "dropout was 0.1 and is now 0.2" in error_line(capsys, train_gpt2.main, *same, "--dropout", "0.2")


def test_records_between_checkpoints_are_those_that_the_model_read(command, tiny_data):
    _, folder = command
    read = np.load(folder.parent / "read.npy")
    corpus = open_prepared("tiny", str(tiny_data), "dataset_name").select("train", None)
    stories = {record["record_id"]: record["story"] for record in corpus.read()}
    tokenizer = load_tokenizer(folder)
    rows = {row["step"]: row["since"] for row in open_snapshots(folder).table()}
    assert rows.pop(0) is None
    for step, since in rows.items():
        found = records_between(folder, since + 1, step)
        ids = [
            tokenizer(stories[row.record_id])["input_ids"][row.token : row.token + row.tokens]
            for row in found.itertuples()
        ]
        assert np.concatenate(ids).tolist() == read[since:step].flatten().tolist()
        assert sorted(set(found["update"])) == list(range(since + 1, step + 1))


def test_a_fine_tuning_has_them_too(tune_flags, tmp_path):
    dropout = ("--lora_dropout", "0.1")
    sft_lora.main(tune_flags("plain", *dropout))
    sft_lora.main(tune_flags("run", *dropout, *LADDER, *ALL))
    assert outcome(tmp_path / "run") == outcome(tmp_path / "plain")
    found = open_snapshots(tmp_path / "run")
    assert found.steps == [0, 1, 2, 4]
    gradients = found.all[-1].read("gradients")
    assert {name.split(".")[-3] for name in gradients} == {"lora_A", "lora_B"}
    embeddings = [one.read("embeddings")["weight"] for one in (found.all[0], found.all[-1])]
    assert np.array_equal(*embeddings)  # the base's
    assert not np.array_equal(*(one.read("attention")["0"] for one in (found.all[0], found.all[-1])))
    text = found.all[0].texts[0]
    assert text["num_scored"] < len(text["input_ids"]) - 1  # the prompt counts in no loss


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--snapshot", "attention,weights"), "--snapshot weights: valid: activations, attention, embeddings, gradien"),
        (("--snapshot", "attention,attention"), "--snapshot attention is given twice"),
        (("--snapshot_samples", "2"), "--snapshot_samples 2 needs --snapshot"),
        (("--checkpoint_ladder", "True"), "--save_strategy no saves none at fixed updates; give --save_strategy steps"),
        (("--snapshot", "attention"), "--save_strategy no saves none; give --save_strategy steps"),
        ((*LADDER, "--snapshot", "attention", "--model_type", "mamba", "--config_overrides", "hidden_size=32"),
         "--snapshot attention: a mamba has no attention heads"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(train_flags, tmp_path, capsys, more, said):
    assert said in error_line(capsys, train_gpt2.main, *train_flags("run", *more))
    assert not (tmp_path / "run").exists()


def test_snapshots_that_do_not_fit_are_refused_with_their_size(train_flags, tmp_path, capsys, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=100_000)
    monkeypatch.setattr(snapshots.shutil, "disk_usage", lambda place: usage)
    line = error_line(capsys, train_gpt2.main, *train_flags("run", *LADDER, *ALL))
    assert "4 of 0.2 MB (attention 0.0, embeddings 0.1, gradients 0.1, activations 0.0), 1 MB in all, and 0 MB" in line


@pytest.mark.slow
@pytest.mark.parametrize("place", ["checkpoint-0", ".checkpoint-2.unfinished/snapshot", "checkpoint-8"])
def test_a_run_killed_with_a_snapshot_half_written_ends_the_same(command, tmp_path, place):
    argv, folder = command
    again = tmp_path / "run"
    assert kill_and_go_on([*argv, "--output_dir", str(again)], again, 0, after=again / place)
    assert outcome(again) == outcome(folder)
    assert steps_of(again) == STEPS


@pytest.mark.slow
def test_two_processes_write_one_snapshot(train_flags, tmp_path):
    flags = (*LADDER, *ALL, "--per_device_train_batch_size", "2", "--use_cpu", "True")
    Training(train_flags("two", *flags), tmp_path / "two", world_size=2).finish()
    Training(train_flags("plain", *flags[-4:]), tmp_path / "plain", world_size=2).finish()
    assert outcome(tmp_path / "two") == outcome(tmp_path / "plain")
    assert open_snapshots(tmp_path / "two").steps == [0, 1, 2, 4]
