"""Pushes to a Hub with the unmodified client: what arrives, what never does, and what a failing Hub costs.

All trainings are forked from one process that was started with the stand-in as its Hub (`clients`).
"""

import itertools
import json
import os
import platform
import re
import shutil
import socket
import time
import types
from pathlib import Path
from unittest import mock

import pytest
import torch
from fork_server import ForkServer
from hub_stand_in import HubStandIn, Owner
from safetensors.torch import load, load_file
from tiny_models import tiny_model
from transformers import Trainer, TrainingArguments

import train_gpt2
from lm_trials.files import damaged, file_sums
from lm_trials.training import hub as hub_module
from lm_trials.training import manifest
from lm_trials.training.public_copy import public_card, public_copy
from lm_trials.training.resumption import ExactResume

pytestmark = pytest.mark.end_to_end

TOKEN = "hf_TheTokenThatNobodyMayEverSee0123456"
READER, FINE = "hf_ThisOneMayOnlyRead", "hf_ThisOneMayWriteElsewhere"
MODEL = {".gitattributes", "config.json", "generation_config.json", "model.safetensors", "run.json",
         "tokenizer.json", "tokenizer_config.json", "trainer_state.json"}  # fmt: skip
AT_THE_END = {"README.md", "all_results.json", "eval_results.json", "loss.png"}
CHECKPOINT = (MODEL - {".gitattributes", "run.json"}) | {
    "optimizer.pt", "scheduler.pt", "rng_state.pth", "progress_0.json", "sums.json"}  # fmt: skip


@pytest.fixture(scope="module")
def hub():
    owners = {TOKEN: Owner(), READER: Owner(role="read"), FINE: Owner(role="fineGrained", repositories=("tester/y",))}
    with HubStandIn(owners) as started:
        yield started
    assert started.unknown == []


@pytest.fixture
def refusals(hub):
    """What the Hub refuses, until the end of a test."""
    yield hub.refusals
    hub.refusals.clear()


@pytest.fixture(scope="module")
def clients(hub, tmp_path_factory):
    """A fork server whose processes have `hub` as their Hub, and no token of the machine's."""
    home = tmp_path_factory.mktemp("home")
    for_clients = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0"}
    with mock.patch.dict(os.environ, {**for_clients, "HF_HUB_DISABLE_XET": "1"}):
        os.environ.pop("HF_TOKEN", None)
        server = ForkServer()
    yield server
    with server.process:
        server.process.stdin.close()
        assert server.process.wait(30) == 0
    assert not any(TOKEN.encode() in path.read_bytes() for path in home.rglob("*") if path.is_file())


class Client:
    """A function of `hub_clients` in a process of its own."""

    def __init__(self, server, log, function, *arguments, **environment):
        self.server, self.log = server, log
        self.number = server.start("call", ["hub_clients", function, *arguments], log, environment)

    def wait(self, seconds=90):
        code = self.server.exit_code(self.number, seconds)
        assert code is not None, self.log.read_text()[-3000:]
        return code, self.log.read_text()

    def succeed(self):
        code, said = self.wait()
        assert code == 0, said[-3000:]
        return said


@pytest.fixture(scope="module")
def start(clients, tmp_path_factory):
    logs, number = tmp_path_factory.mktemp("logs"), itertools.count()

    def begin(function, *arguments, **environment):
        return Client(clients, logs / f"{next(number)}.log", function, *arguments, **environment)

    return begin


@pytest.fixture(scope="module")
def flags(tiny_data, tiny_shape):
    """Return the words of a training of four updates and two checkpoints."""

    def words(folder, *more):
        argv = f"--dataset_name tiny --data_cache_dir {tiny_data} --vocab_size 400 --model_type llama --block_size 32"
        argv += f" --config_overrides {tiny_shape} --per_device_train_batch_size 4 --max_steps 4 --save_steps 2"
        argv += f" --learning_rate 1e-3 --logging_steps 1 --num_sampled_stories 0 --output_dir {folder}"
        return [*argv.split(), *map(str, more)]

    return words


@pytest.fixture(scope="module")
def pushed(hub, start, flags, tmp_path_factory):
    """A run that was pushed at each checkpoint and at its end, its token on its command line."""
    folder = tmp_path_factory.mktemp("runs") / "x"
    more = ["--push_to_hub", "True", "--hub_always_push", "True", "--hub_strategy", "all_checkpoints"]
    said = start("train", "train_gpt2", [*flags(folder, *more), "--hub_token", TOKEN], {}).succeed()
    return types.SimpleNamespace(folder=folder, said=said, hub=hub)


def weights(files):
    return load(files["model.safetensors"])


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def files_of(folder):
    return [path for path in Path(folder).rglob("*") if path.is_file()]


def test_every_checkpoint_and_the_end_arrive_each_in_one_commit(pushed):
    repository = pushed.hub.repositories["tester/x"]
    assert repository.titles == [
        ("main", "initial commit"), ("main", "Training in progress, step 2"),
        ("main", "Training in progress, step 4"), ("main", "End of training"),
    ]  # fmt: skip
    after_2, after_4, end = list(repository.commits.values())[1:]
    of_2, of_4 = ({f"checkpoint-{step}/{name}" for name in CHECKPOINT} for step in (2, 4))
    assert after_2.keys() == MODEL | of_2
    assert after_4.keys() == MODEL | of_2 | of_4
    assert end.keys() == MODEL | AT_THE_END | of_2 | of_4
    assert same(weights(after_2), load_file(pushed.folder / "checkpoint-2" / "model.safetensors"))
    assert same(weights(end), load_file(pushed.folder / "model.safetensors"))
    assert not same(weights(after_2), weights(end))
    assert "pushed" in pushed.said
    assert not repository.private


def test_no_token_is_printed_written_or_pushed(pushed):
    assert (pushed.folder / "training_args.bin").exists()
    assert [path for path in files_of(pushed.folder) if TOKEN.encode() in path.read_bytes()] == []
    assert TOKEN.encode() not in pushed.hub.everything()
    assert TOKEN not in pushed.said
    # Where it stood on the command line, its place is kept.
    command = json.loads((pushed.folder / "run.json").read_text())["environment"]["command"]
    assert command[-2:] == ["--hub_token", "<HUB_TOKEN>"]
    assert "other users can read --hub_token" in pushed.said


def test_stock_trainer_pickles_the_token(tmp_path):
    """The control of the test above: it can fail; and the guard is the mixin's, whatever trainer it is mixed into."""
    for trainer_class, leaks in ((Trainer, True), (ExactResume, False)):
        arguments = TrainingArguments(
            output_dir=str(tmp_path / trainer_class.__name__), hub_token=TOKEN, report_to="none", use_cpu=True
        )
        trainer_class(model=tiny_model("llama"), args=arguments).save_model()
        found = [path.name for path in files_of(arguments.output_dir) if TOKEN.encode() in path.read_bytes()]
        assert found == (["training_args.bin"] if leaks else [])
        assert arguments.hub_token == TOKEN


def test_a_push_under_way_keeps_its_token_to_itself(tmp_path):
    arguments = TrainingArguments(output_dir=str(tmp_path), hub_token=TOKEN, report_to="none", use_cpu=True)
    destination = hub_module.Destination.of(arguments, "tester/x")
    arguments.hub_token = None  # as while a checkpoint is saved
    assert destination.token == TOKEN
    assert TOKEN not in repr(destination)
    illegal = ValueError(f"Illegal header {TOKEN}")
    assert hub_module.hub_reason(illegal, destination.token) == "Illegal header <HUB_TOKEN>"


def test_nothing_of_this_machine_is_public(pushed):
    run = json.loads((pushed.folder / "run.json").read_text())
    public = json.loads(pushed.hub.files("tester/x")["run.json"])
    assert run["environment"]["working_directory"] == os.getcwd()  # the run's own record stays whole
    assert run["logistics"]["output_dir"] == str(pushed.folder)
    assert public["logistics"]["output_dir"] == "x"
    assert "working_directory" not in public["environment"]
    assert public["outcome"] == run["outcome"]
    places = {str(pushed.folder.parent), os.getcwd(), str(Path.home()), "tfevents"}
    places |= {name for name in (platform.node(),) if len(name) > 5}  # a shorter one stands in any base64
    everything = pushed.hub.everything()
    assert [place for place in places if place.encode() in everything] == []
    assert any("tfevents" in path.name for path in files_of(pushed.folder))
    assert not any(name.endswith((".bin", ".unfinished")) for name in pushed.hub.files("tester/x"))


def test_what_was_pushed_loads_with_transformers_alone_and_with_our_commands(pushed, start, tiny_data, tmp_path):
    first = list(pushed.hub.repositories["tester/x"].commits)[1]
    said = start("read_model", "tester/x", ["main", first], str(tmp_path), str(tiny_data)).succeed()
    assert same(load_file(tmp_path / "main" / "model.safetensors"), load_file(pushed.folder / "model.safetensors"))
    of_2 = load_file(pushed.folder / "checkpoint-2" / "model.safetensors")
    assert same(load_file(tmp_path / first / "model.safetensors"), of_2)
    read, kept = (json.loads((place / "tokenizer.json").read_text()) for place in (tmp_path / "main", pushed.folder))
    assert read["model"] == kept["model"]
    evaluated, final = (
        json.loads((place / "eval_results.json").read_text()) for place in (tmp_path / "eval", pushed.folder)
    )
    assert evaluated["eval_loss"] == final["eval_loss"]
    assert "One day" in said


def test_a_downloaded_run_goes_on_to_the_same_weights_and_asks_no_hub(pushed, start, flags, tmp_path):
    start("download", "tester/x", str(tmp_path / "x")).succeed()
    for path in files_of(tmp_path / "x" / "checkpoint-4"):
        path.unlink()
    (tmp_path / "x" / "checkpoint-4").rmdir()
    (tmp_path / "x" / "model.safetensors").unlink()
    before = len(pushed.hub.requests)
    said = start("train", "train_gpt2", flags(tmp_path / "x"), {"HF_TOKEN": TOKEN}).succeed()
    assert "from checkpoint-2" in said
    assert (tmp_path / "x" / "model.safetensors").read_bytes() == (pushed.folder / "model.safetensors").read_bytes()
    # And a training without --push_to_hub, token and network at hand, has asked the Hub for nothing.
    assert len(pushed.hub.requests) == before


def test_an_adapter_arrives_and_loads_with_peft_alone(pushed, start, tmp_path):
    rows = [{"prompt": f"Write about {number} cats.", "completion": "One day, a cat sat."} for number in range(40)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = (
        f"--model_name_or_path {pushed.folder} --dataset_name {tmp_path}/pairs.jsonl --data_cache_dir {tmp_path}/data"
    )
    argv += f" --output_dir {tmp_path}/lora --lora_r 2 --max_steps 4 --save_steps 2 --per_device_train_batch_size 2"
    argv += f" --learning_rate 1e-2 --report_to none --push_to_hub True --hub_token {TOKEN} --hub_always_push True"
    said = start("train", "sft_lora", argv.split(), {}).succeed()
    assert "is a local folder; push it too" in " ".join(said.split())  # it is folded
    assert "base model" not in pushed.said
    repository = pushed.hub.repositories["tester/lora"]
    titles = [title for _, title in repository.titles]
    assert titles[1:] == ["Training in progress, step 2", "Training in progress, step 4", "End of training"]
    public = pushed.hub.files("tester/lora")
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "run.json", "README.md"} <= set(
        public
    )
    assert not any(name.endswith((".pt", ".pth", ".bin")) for name in public)
    assert json.loads(public["adapter_config.json"])["base_model_name_or_path"] == "./x"
    assert b"base_model:" not in public["README.md"]
    run = tmp_path / "lora"
    assert json.loads((run / "adapter_config.json").read_text())["base_model_name_or_path"] == str(pushed.folder)
    assert [path for path in files_of(run) if TOKEN.encode() in path.read_bytes()] == []
    everything = pushed.hub.everything()
    assert [place for place in (TOKEN, str(tmp_path), str(pushed.folder)) if place.encode() in everything] == []

    start("read_adapter", str(pushed.folder), "tester/lora", str(tmp_path / "got")).succeed()
    start("read_adapter", str(pushed.folder), str(run), str(tmp_path / "own")).succeed()
    start("read_adapter", str(pushed.folder), str(run / "checkpoint-2"), str(tmp_path / "earlier")).succeed()
    got, own, earlier = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("got", "own", "earlier"))
    assert same(got, own)
    assert not same(got, earlier)
    answers = [(tmp_path / name / "logits.json").read_text() for name in ("got", "own", "earlier")]
    assert answers[0] == answers[1] != answers[2]


def test_a_slow_upload_takes_the_checkpoint_that_it_was_started_with(hub, start, flags, tmp_path):
    """Checkpoints come and go meanwhile; the end waits for it, and pushes what was left out."""
    hub.open.clear()
    more = ["--push_to_hub", "True", "--hub_strategy", "checkpoint", "--save_steps", "1", "--save_total_limit", "1"]
    private = ["--hub_model_id", "tester/slow", "--hub_private_repo", "True", "--hub_revision", "step/four"]
    client = start("train", "train_gpt2", flags(tmp_path / "slow", *more, *private), {"HF_TOKEN": TOKEN})
    until = time.monotonic() + 60
    while not (tmp_path / "slow" / "checkpoint-4").exists() and time.monotonic() < until:
        time.sleep(0.02)
    time.sleep(0.3)
    assert [path.name for path in tmp_path.glob("slow/checkpoint-*")] == ["checkpoint-4"]
    assert not (tmp_path / "slow" / "finished.json").exists()
    hub.open.set()
    client.succeed()
    repository = hub.repositories["tester/slow"]
    assert repository.private
    assert [title for branch, title in repository.titles if branch == "step/four"] == [
        "Training in progress, step 1", "End of training"]  # fmt: skip
    assert repository.titles[0] == ("main", "initial commit")
    assert len(repository.commits[repository.branches["main"]]) == 1
    first, last = [repository.commits[oid] for oid in list(repository.commits)[1:]]
    assert first.keys() == MODEL | {f"last-checkpoint/{name}" for name in CHECKPOINT}
    assert [json.loads(files["last-checkpoint/sums.json"])["global_step"] for files in (first, last)] == [1, 4]
    assert same(weights(last), load_file(tmp_path / "slow" / "model.safetensors"))
    assert not same(weights(first), weights(last))
    for files in (first, last):
        (tmp_path / "got").mkdir(exist_ok=True)
        for name in CHECKPOINT:
            (tmp_path / "got" / name).write_bytes(files[f"last-checkpoint/{name}"])
        assert damaged(tmp_path / "got", json.loads(files["last-checkpoint/sums.json"])["files"]) == []
    assert list(tmp_path.glob("slow/.push-*")) == []


def test_a_failing_hub_costs_no_run_and_the_same_command_makes_up_for_it(hub, refusals, start, flags, tmp_path):
    refusals["POST .*/commit/"] = 403
    words = flags(tmp_path / "w", "--push_to_hub", "True", "--hub_always_push", "True")
    code, said = start("train", "train_gpt2", words, {"HF_TOKEN": TOKEN}).wait()
    assert code == 1
    warnings = re.findall("^(?:.*\r)?.*warning: (tester/w was not pushed.*)$", said, re.MULTILINE)
    assert len(warnings) == 2
    assert all("refused by the test" in line and "the training continues" in line for line in warnings)
    (error,) = re.findall("^error: (.*)$", said, re.MULTILINE)
    assert str(tmp_path / "w") in error
    assert "is complete, and the same command pushes it" in error
    assert "Traceback" not in said
    assert (tmp_path / "w" / "finished.json").exists()
    assert hub.files("tester/w").keys() == {".gitattributes"}
    before = file_sums(tmp_path / "w")

    refusals.clear()
    said = start("train", "train_gpt2", words, {"HF_TOKEN": TOKEN}).succeed()
    assert "is already finished" in said
    assert same(weights(hub.files("tester/w")), load_file(tmp_path / "w" / "model.safetensors"))
    assert hub.files("tester/w").keys() == MODEL | AT_THE_END  # every_save: no optimizer
    assert file_sums(tmp_path / "w") == before

    said = start("train", "train_gpt2", words, {"HF_TOKEN": TOKEN}).succeed()  # nothing has changed: no third commit
    assert [title for _, title in hub.repositories["tester/w"].titles] == ["initial commit", "End of training"]


@pytest.fixture
def silent():
    """The address of what takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_what_cannot_work_is_one_line_before_anything_is_written(hub, refusals, silent, start, flags, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = f"http://127.0.0.1:{server.getsockname()[1]}"
    refusals["POST .*/models/tester/taken/preupload"] = 403
    push = ["--push_to_hub", "True"]

    def train(name, environment, *more):
        return start("train", "train_gpt2", flags(tmp_path / name, *push, *more), environment)

    def elsewhere(name, endpoint, timeout):
        return start("train_with_another_hub", flags(tmp_path / name, *push), endpoint, timeout, HF_TOKEN=TOKEN)

    ours, id_is = {"HF_TOKEN": TOKEN}, "--hub_model_id"
    cases = {
        "none": (train("none", {}), "there is no token for"),
        "bad": (train("bad", {"HF_TOKEN": "hf_bad"}), "refuses the token (HF_TOKEN"),
        "odd": (train("odd", {}, "--hub_token", f"{TOKEN}\n x"), "has invalid characters"),
        "read": (train("read", {"HF_TOKEN": READER}), "may only read"),
        "fine": (train("fine", {"HF_TOKEN": FINE}), "fine on"),
        "taken": (train("taken", ours), "taken on"),
        "foreign": (train("foreign", ours, id_is, "other/x"), "valid owners: tester"),
        "name": (train("name", ours, id_is, "a b"), "--hub_model_id a b is not a repository name"),
        "closed": (elsewhere("closed", closed, 10.0), f"{closed} cannot be reached"),
        "silent": (elsewhere("silent", silent, 0.5), f"{silent} cannot be reached (timed out)"),
    }
    for name, (client, expected) in cases.items():
        code, said = client.wait()
        assert code == 2, (name, said)
        (error,) = re.findall("^error: (.*)$", said, re.MULTILINE)
        assert expected in error, name
        assert "Traceback" not in said
        assert TOKEN not in said
        assert not (tmp_path / name).exists()
    assert not {"tester/none", "tester/read", "tester/fine", "other/x"} & hub.repositories.keys()


def test_a_refused_token_stops_every_process(start, flags, tmp_path):
    from killed_runs import world

    words = flags(tmp_path / "two", "--push_to_hub", "True", "--per_device_train_batch_size", "2")
    processes = [start("train", "train_gpt2", words, {"HF_TOKEN": "hf_bad"}, **one) for one in world(2)]
    results = [process.wait(60) for process in processes]
    assert [code for code, _ in results] == [2, 2]
    assert "".join(said for _, said in results).count("error: ") == 1
    assert not (tmp_path / "two").exists()


def test_offline_is_one_line(flags, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        train_gpt2.main(flags(tmp_path / "offline", "--push_to_hub", "True", "--hub_token", TOKEN))
    assert stopped.value.code == 2
    assert "HF_HUB_OFFLINE is set; unset it, or remove --push_to_hub" in capsys.readouterr().err
    assert not (tmp_path / "offline").exists()


def test_the_token_leaves_the_command(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/a/train_gpt2.py", f"--hub-token={TOKEN}", "--seed", "1"])
    assert manifest._command(TOKEN) == ["train_gpt2.py", "--hub-token=<HUB_TOKEN>", "--seed", "1"]
    assert manifest._command(None)[1] == f"--hub-token={TOKEN}"


@pytest.fixture
def run_folder(tmp_path):
    """A run folder with something of each kind in it, of a place that is nobody's business."""
    run = tmp_path / "run"
    for name, content in {
        "model.safetensors": "weights", "optimizer.pt": "state", "training_args.bin": "pickle", "notes.txt": "mine",
        "run.json": json.dumps({"outcome": {"dataset_name": "/home/me/a.jsonl"}, "environment": {"platform": "Linux"}}),
        "trainer_state.json": json.dumps({"best_model_checkpoint": "/home/me/run/checkpoint-2", "log_history": [
            {"eval_story_0": "He went to /home/me/ and sang."}]}),
        "tokenizer_config.json": json.dumps({"name_or_path": "/home/me/tok", "chat_template": "{{ ' /think/ ' }}"}),
        "adapter_config.json": json.dumps({"base_model_name_or_path": str(tmp_path), "r": 8}),
        "eval/tiny/per_story.parquet": "stories", "runs/Nov_host/events.out.tfevents.1.host": "events",
        ".checkpoint-4.unfinished/model.safetensors": "half", ".run.json.unfinished": "half",
        "checkpoint-2/model.safetensors": "earlier", "checkpoint-2/optimizer.pt": "state",
        "checkpoint-2/training_args.bin": "pickle",
        "checkpoint-2/trainer_state.json": json.dumps({"best_model_checkpoint": "/home/me/run/checkpoint-2"}),
    }.items():  # fmt: skip
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(content)
    sums = {"global_step": 2, "files": file_sums(run / "checkpoint-2")}
    (run / "checkpoint-2" / "sums.json").write_text(json.dumps(sums))
    return run


def test_a_public_copy_holds_what_is_listed_and_leaves_the_run_as_it_is(run_folder, tmp_path):
    before = file_sums(run_folder)
    copy = public_copy(run_folder, run_folder, {"last-checkpoint": run_folder / "checkpoint-2"})
    found = {path.relative_to(copy).as_posix() for path in files_of(copy)}
    assert found == {
        "model.safetensors", "run.json", "trainer_state.json", "adapter_config.json", "tokenizer_config.json",
        *(f"last-checkpoint/{name}.{kind}" for name, kind in
          (("model", "safetensors"), ("optimizer", "pt"), ("trainer_state", "json"), ("sums", "json"))),
    }  # fmt: skip
    assert json.loads((copy / "run.json").read_text())["outcome"] == {"dataset_name": "a.jsonl"}
    assert json.loads((copy / "adapter_config.json").read_text())["base_model_name_or_path"] == f"./{tmp_path.name}"
    tokenizer = json.loads((copy / "tokenizer_config.json").read_text())
    assert tokenizer == {"name_or_path": "tok", "chat_template": "{{ ' /think/ ' }}"}
    state = json.loads((copy / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == "checkpoint-2"
    assert state["log_history"][0]["eval_story_0"] == "He went to /home/me/ and sang."
    sums = json.loads((copy / "last-checkpoint" / "sums.json").read_text())["files"]
    assert sums.keys() == {"model.safetensors", "optimizer.pt", "trainer_state.json"}
    assert damaged(copy / "last-checkpoint", sums) == []
    own = json.loads((run_folder / "checkpoint-2" / "sums.json").read_text())["files"]
    assert sums["trainer_state.json"] != own["trainer_state.json"]
    # What is removed meanwhile is in the copy still.
    (run_folder / "model.safetensors").unlink()
    assert (copy / "model.safetensors").read_text() == "weights"
    (run_folder / "model.safetensors").write_text("weights")
    shutil.rmtree(copy)
    assert file_sums(run_folder) == before


def test_during_training_the_model_is_the_checkpoints(run_folder):
    copy = public_copy(run_folder, run_folder / "checkpoint-2", {})
    assert (copy / "model.safetensors").read_text() == "earlier"
    assert {path.name for path in files_of(copy)} == {"model.safetensors", "run.json", "trainer_state.json"}


def test_a_card_names_no_place_and_no_base_that_is_none():
    local = "---\nbase_model: /models/base\ntags:\n- lora\n- base_model:adapter:/models/base\n---\nOf /models/base.\n"
    assert public_card(local) == "---\ntags:\n- lora\n---\nOf base.\n"
    of_the_hub = local.replace("/models/base", "HuggingFaceTB/SmolLM-135M")
    assert public_card(of_the_hub) == of_the_hub
    stock = "# x\n\nThis model is a fine-tuned version of [](https://huggingface.co/) on an unknown dataset.\n"
    assert public_card(stock) == "# x\n\nThis model was trained from scratch on an unknown dataset.\n"
