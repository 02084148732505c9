"""What `eval_checkpoint.py` refuses: one line, status 2, and no file that was not there."""

import os

import pytest
from tiny_models import tiny_model, tiny_tokenizer


@pytest.fixture
def refused(run, tmp_path, capfd):
    """Evaluate what must not be: status 2, one line, and no file that was not there."""

    def call(*more, **options):
        before = {path for path in tmp_path.rglob("*")}
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            run(*more, **options)
        said = capfd.readouterr()
        assert left.value.code == 2
        lines = [line for line in said.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        assert "Traceback" not in said.err
        assert said.out == ""
        assert {path for path in tmp_path.rglob("*")} == before
        return lines[0].removeprefix("error: ")

    return call


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--by", "feature"], "--by feature: did you mean features? valid: features, source"),
        (["--by", "features", "length"], "--by length: valid: features, source"),
        (["--max_eval_samples", "0"], "--max_eval_samples 0 must be"),
        (["--per_device_eval_batch_size", "0"], "--per_device_eval_batch_size 0 must be"),
        (["--generate", "-1"], "--generate -1 must be"),
        (["--prompt_share", "1"], "--prompt_share 1 must be"),
        (["--temperature", "-1"], "--temperature -1 must be"),
        (["--seed", "-1"], "--seed -1 must be"),
        (["--layout", "paked"], "argument --layout: invalid choice: 'paked' (choose from 'per_story', 'packed')"),
        (["--block_size", "65"], "--block_size 65: the model sees 2 to 64 tokens"),
        (["--block_size", "1"], "--block_size 1 must be"),
        (["--dataset_split", "valid"], "--dataset_split valid: did you mean validation?"),
        (["--dataset_name", "no/such/file.jsonl"], "no/such/file.jsonl does not exist"),
        (["--model_dir", "./nowhere"], "./nowhere is no folder"),
        (["--model_dir", "no-such-owner/model"], "no-such-owner/model cannot be loaded"),
        (["--model_dir", "./llama"], "would both be written to out/llama/stories"),
        (["--dataset_name", "stories.jsonl"], "would both be written to out/llama/stories"),
        (["--tokenizer_name", "nowhere/at/all"], "nowhere/at/all: no such file or folder"),
        (["--data_mix", ".5,.5"], "--data_mix .5,.5: stories.jsonl is one data set"),
        (["--all_checkpoints"], "--all_checkpoints: llama holds no checkpoint-N folder"),
        (["--modl_dir", "x"], "--modl_dir is no flag here; did you mean --model_dir?"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(refused, flags, text):
    assert text in refused(*flags)


def test_no_model_is_named(refused):
    assert refused(model=None) == "--model_name_or_path is missing; give --model_name_or_path RUN_OR_CHECKPOINT"


def test_a_folder_without_a_model_and_one_with_pickled_weights(refused, tmp_path):
    (tmp_path / "run/checkpoint-5").mkdir(parents=True)
    assert "run holds no model (no config.json); it holds checkpoint-5" in refused(model="run")
    (tmp_path / "run/config.json").write_text("{}")
    (tmp_path / "run/pytorch_model.bin").write_bytes(b"")
    assert "pickled weights (.bin) are not read" in refused(model="run")


def test_a_tokenizer_with_ids_that_the_model_does_not_know_is_refused_before_anything_starts(refused, run, tmp_path):
    """An id without an embedding is an IndexError in the middle of a run on a CPU, and worse on a GPU."""
    tiny_model("llama", vocab_size=325).save_pretrained(tmp_path / "small")
    tiny_tokenizer().save_pretrained(tmp_path / "small")
    message = refused("--model_dir", "small")  # the model before it is not evaluated either
    assert "small has 325 embeddings and the tokenizer's ids go up to 329; give the tokenizer" in message
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<pad>"})  # never in a text
    tokenizer.save_pretrained(tmp_path / "padded")
    assert run("--tokenizer_name", "padded")[0]["n"] == 30


def test_a_file_that_breaks_in_the_middle_leaves_nothing_behind(refused, tmp_path):
    lines = (tmp_path / "stories.jsonl").read_text().splitlines()
    (tmp_path / "broken.jsonl").write_text("\n".join([*lines, '{"story": "One']) + "\n")
    assert "broken.jsonl" in refused(data="broken.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    assert "empty.jsonl is empty" in refused(data="empty.jsonl")
    (tmp_path / "latin.jsonl").write_bytes('{"story": "Où"}'.encode("latin-1"))
    assert "latin.jsonl" in refused(data="latin.jsonl")
    (tmp_path / "columns.jsonl").write_text('{"body": "One day."}\n')
    assert "the columns are body" in refused(data="columns.jsonl")


def test_earlier_results_survive_an_evaluation_that_fails(run, refused, tmp_path):
    run("--max_eval_samples", 3)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    (tmp_path / "broken.jsonl").write_text('{"story": "One day."}\n{"story": "One')
    refused(data="broken.jsonl")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_a_folder_whose_mode_forbids_it(refused, monkeypatch):
    """Root, as whom tests may run, writes everywhere; so the answer is the system's, not the folder's mode."""
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "out cannot be written to; give another folder by --output_dir" in refused()


def test_a_place_that_cannot_be_written_to_is_known_before_the_evaluation(refused, tmp_path):
    (tmp_path / "taken").write_text("a file")
    assert "taken/out cannot be written to; give another folder by --output_dir" in refused(output="taken/out")
    assert "give another folder by --tables_dir" in refused("--generate", 1, "--tables_dir", "taken/tables")


def test_a_story_of_no_token_to_predict(refused, run, tmp_path):
    assert "holds no story" in refused(data=_written(tmp_path / "blank.jsonl", '{"story": "  "}\n'))


def _written(path, text):
    path.write_text(text)
    return path.name
