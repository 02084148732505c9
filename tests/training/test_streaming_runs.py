"""train_gpt2.py on streams and mixtures: the losses of the map-style run, shares as asked for, mistakes in one line."""

import json
from collections import Counter

import pytest

import prepare_tinystories
import train_gpt2
from lm_trials.console import UsageError
from lm_trials.stories.corpora import open_records
from lm_trials.tokens.tokenizers import load_tokenizer
from lm_trials.training import data_order as order
from lm_trials.training.data_order import RunOrder
from lm_trials.training.flags import DataArguments
from lm_trials.training.stores import open_stores

pytestmark = pytest.mark.end_to_end


@pytest.fixture(scope="module")
def two_parts(tiny_data):
    """Two corpora, `north` and `south`, beside `tiny`; the second has fewer stories."""
    for seed, (name, count) in enumerate((("north", 500), ("south", 200))):
        if not (tiny_data / name).exists():
            data = ["--corpus", name, "--data_cache_dir", str(tiny_data)]
            prepare_tinystories.main(["generate", "--num_stories", str(count), "--seed", str(seed), *data])
    return tiny_data


@pytest.fixture
def run(train_flags, two_parts, tmp_path):
    def train(name, *more):
        train_gpt2.main(train_flags(name, *more))
        rows = json.loads((tmp_path / name / "trainer_state.json").read_text())["log_history"]
        return [row["loss"] for row in rows if "loss" in row], rows

    return train


@pytest.fixture
def stories_file(tmp_path):
    """Write stories to a file and return its path."""

    def write(name, count, begin=0):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        texts = (
            f"One day, a cat met {n} birds and {n * n % 17} frogs by the lake." for n in range(begin, begin + count)
        )
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        return path

    return write


SECOND_PASS = ("--per_device_train_batch_size", "1200", "--max_steps", "5")
FEW = ("--dataset_name", "few.jsonl", "--validation_split_percentage", "50")
LONG = "hidden_size=32,num_hidden_layers=1,num_attention_heads=1,intermediate_size=32,max_position_embeddings=8192"
MIXED = ("--dataset_name", "north+south", "--data_mix", ".3,.7")


@pytest.mark.parametrize(
    "more",
    [
        ("--shuffle_buffer_size", "40", *SECOND_PASS),
        ("--shuffle_buffer_size", "1"),
        (*MIXED, "--shuffle_buffer_size", "40"),
        (*MIXED, "--shuffle_buffer_size", "1", "--data_mix_unit", "documents", "--stop_when", "all_exhausted"),
        ("--document_separator", "none", "--append_eos", "True", "--shuffle_buffer_size", "40"),
    ],
    ids=["passes", "unshuffled", "mixed", "mixed by documents", "separator"],
)
def test_streamed_cached_and_mapped_runs_are_one_run(run, tmp_path, more):
    mapped, rows = run("False", *more)
    for streaming in ("True", "CacheStream"):
        streamed, other = run(streaming, *more, "--streaming", streaming)
        assert streamed == mapped, streaming
        assert [row["eval_loss"] for row in other if "eval_loss" in row] == [
            row["eval_loss"] for row in rows if "eval_loss" in row
        ]
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("False", "True", "CacheStream")]
    assert weights[0] == weights[1] == weights[2]
    if "1" not in more:
        assert run("other", *more, "--data_seed", "9")[0] != mapped


def test_a_file_is_streamed_without_being_written(run, stories_file, tmp_path, two_parts):
    path = stories_file("tales.jsonl", 900)
    before = sorted(path.name for path in two_parts.iterdir())
    more = ("--dataset_name", str(path), "--shuffle_buffer_size", "50")
    streamed, _ = run("streamed", *more, "--streaming", "True")
    assert sorted(path.name for path in two_parts.iterdir()) == before
    assert run("mapped", *more)[0] == streamed


@pytest.mark.parametrize("unit", ["tokens", "documents"])
def test_shares_are_as_asked_for_and_reported(run, tmp_path, capsys, unit):
    """Of 800 blocks of 32: by tokens within the longest story, some 600 tokens, of the share."""
    _, rows = run("run", *MIXED, "--data_mix_unit", unit, "--max_steps", "10", "--per_device_train_batch_size", "80")
    last = [row for row in rows if "share_north" in row][-1]
    assert last["share_north"] + last["share_south"] == pytest.approx(1)
    assert last["share_north"] == pytest.approx(0.3, abs=0.025 if unit == "tokens" else 0.05)
    parts = [part for step in range(1, 11) for part in RunOrder(tmp_path / "run").parts_of(step)]
    north = sum(len(part.ids) for part in parts if part.corpus == "north")
    assert last["share_north"] == pytest.approx(north / sum(len(part.ids) for part in parts), abs=1e-12)
    out = capsys.readouterr().out
    assert f"30.0% north + 70.0% south, by {unit}, until first exhausted" in out
    assert f"{last['share_north']:.2%} north, {last['share_south']:.2%} south of the tokens" in out
    assert {key for row in rows for key in row} >= {"eval_loss", "eval_north_loss", "eval_south_loss"}


@pytest.mark.parametrize("streaming", ["True", "False"])
def test_a_pass_ends_with_the_first_part_or_with_the_last(two_parts, streaming):
    """At .8 and .2 the larger part ends first; until the other ends too it has begun anew."""
    tokenizer = load_tokenizer(two_parts / "tok400")
    lengths = {}
    for stop_when in ("first_exhausted", "all_exhausted"):
        given = {"dataset_name": "north+south", "data_mix": ".8,.2", "stop_when": stop_when, "streaming": streaming}
        args = DataArguments(**given, data_cache_dir=str(two_parts), block_size=256)
        blocks = open_stores(args, tokenizer).blocks(args, 3000, data_seed=0)
        seen = {"north": Counter(), "south": Counter()}
        lengths[stop_when] = 0
        for index in range(3000):
            pass_index, pieces = blocks.pieces(index)
            if pass_index:
                break
            lengths[stop_when] += 1
            for piece in pieces:
                seen[("north", "south")[piece.part]].update([piece.document] * (piece.skipped == 0))
        assert (max(seen["north"].values()) > 1) == (stop_when == "all_exhausted")
        assert max(seen["south"].values()) == 1
        stories = len(open_records(two_parts / "south", "train"))
        complete = len(seen["south"]) >= stories - 1  # but for the remainder of the pass
        assert complete == (stop_when == "all_exhausted")
    assert lengths["first_exhausted"] < lengths["all_exhausted"]


def test_the_order_of_a_streamed_mixture_is_told(run, tmp_path, capsys):
    run("run", *MIXED, "--streaming", "True", "--shuffle_buffer_size", "30")
    run("mapped", *MIXED, "--shuffle_buffer_size", "30")
    assert RunOrder(tmp_path / "run").parts_of(3) == RunOrder(tmp_path / "mapped").parts_of(3)
    assert RunOrder(tmp_path / "run").parts_of(3) != RunOrder(tmp_path / "run").parts_of(2)
    order.main([str(tmp_path / "run"), "--step", "3", "--text"])
    out = capsys.readouterr().out
    assert "north" in out
    assert "south" in out


@pytest.mark.parametrize("budget", [1, 128, 129, 1000])
def test_a_token_budget_is_met_within_one_update(run, tmp_path, budget):
    run("run", "--max_steps", "-1", "--max_train_tokens", str(budget))
    described = json.loads((tmp_path / "run" / "run.json").read_text())["outcome"]
    assert 0 <= described["num_tokens"] - budget < 128
    assert described["max_steps"] == described["num_tokens"] // 128


def test_what_stands_between_stories(run, tmp_path):
    """Token 1 opens stories by default, 2 with `eos`, none with `none`; the names of the runs' data say which."""
    firsts = {}
    for separator in ("bos", "eos", "none"):
        run(separator, "--document_separator", separator)
        parts = RunOrder(tmp_path / separator).parts_of(1)
        firsts[separator] = {part.ids[0] for part in parts if part.first == 0}
        described = json.loads((tmp_path / separator / "run.json").read_text())["outcome"]
        assert described["data"]["document_separator"] == separator
    assert firsts["bos"] == {1}
    assert firsts["eos"] == {2}
    assert not firsts["none"] & {1, 2}


def test_a_source_with_its_own_splits_needs_a_validation_split(run, stories_file, train_flags, capsys, tmp_path):
    folder = stories_file("own/train.jsonl", 900).parent
    with pytest.raises(SystemExit):
        run("run", "--dataset_name", str(folder))
    said = capsys.readouterr().err
    assert "has no validation split" in said
    assert "--validation_split_percentage 1" in said
    mapped, _ = run("mapped", "--dataset_name", str(folder), "--validation_split_percentage", "5")
    more = ("--streaming", "True", "--shuffle_buffer_size", "1000")
    assert run("streamed", "--dataset_name", str(folder), "--validation_split_percentage", "5", *more)[0] == mapped
    stories_file("own/validation.jsonl", 50, begin=900)
    assert run("with-its-own", "--dataset_name", str(folder))[0] != mapped


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ((*MIXED[:2], "--data_mix", ".3,.3,.4"), "--data_mix .3,.3,.4 has 3 weights for 2 parts"),
        ((*MIXED[:2], "--data_mix", ".3,.3"), "--data_mix .3,.3 sums to 0.6"),
        ((*MIXED[:2], "--data_mix", "a,b"), "--data_mix a,b is not a list of numbers"),
        (("--data_mix", "1"), "--data_mix 1: tiny is one data set"),
        (("--dataset_name", "north+north"), "north is given twice"),
        (("--dataset_name", "north+"), "north+ has an empty part"),
        (("--dataset_name", "north+nowhere.jsonl"), "nowhere.jsonl does not exist"),
        (("--streaming", "Yes"), "invalid choice: 'Yes'"),
        (("--streaming", "True", "--max_steps", "-1"), "give --max_steps or --max_train_tokens"),
        (("--max_train_tokens", "500"), "--max_train_tokens 500 and --max_steps 4 both set"),
        (("--ignore_data_skip", "True"), "--ignore_data_skip True would repeat data"),
        (("--max_steps", "0"), "--max_steps 0 must be"),
        (
            (
                *("--dense_eval_steps", "4", "--load_best_model_at_end", "True", "--eval_strategy", "steps"),
                *("--save_strategy", "steps", "--save_steps", "4", "--eval_steps", "4"),
            ),
            "most of the evaluated models are not saved",
        ),
        (("--max_train_tokens", "0"), "--max_train_tokens 0 must be"),
        (
            ("--streaming", "True", "--save_strategy", "epoch"),
            "--save_strategy epoch: the length of a stream is unknown",
        ),
        (("--validation_split_percentage", "5"), "tiny is prepared"),
        (
            (*FEW, "--streaming", "True", "--block_size", "8192", "--config_overrides", LONG),
            "--block_size 8192 is more than the tokens",
        ),
        ((*FEW, "--text_column", "body"), "no column 'body'; the columns are text"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    train_flags, two_parts, stories_file, tmp_path, capsys, monkeypatch, more, said
):
    stories_file("few.jsonl", 40)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        train_gpt2.main(train_flags("run", *more))
    err = capsys.readouterr().err
    assert stop.value.code == 2
    assert said in err
    assert "Traceback" not in err
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_two_files_of_one_name_are_two_parts(run, stories_file, tmp_path):
    paths = [stories_file(f"{folder}/tales.jsonl", 900, begin) for folder, begin in (("first", 0), ("second", 900))]
    _, rows = run("run", "--dataset_name", "+".join(map(str, paths)), "--streaming", "True")
    described = json.loads((tmp_path / "run" / "run.json").read_text())["outcome"]["data"]["parts"]
    assert len(described) == 2
    assert len({part["source_fingerprint"] for part in described.values()}) == 2
    shares = [value for key, value in rows[0].items() if key.startswith("share_")]
    assert len(shares) == 2
    assert sum(shares) == pytest.approx(1)


def test_a_part_with_a_validation_split_and_one_without_mix(run, stories_file):
    """The percentage is for the one that needs it; alone it would be refused for the other."""
    without = stories_file("without/train.jsonl", 900).parent
    own = stories_file("own/train.jsonl", 900, begin=900).parent
    stories_file("own/validation.jsonl", 50, begin=1800)
    more = ("--dataset_name", f"{without}+{own}+north", "--validation_split_percentage", "5")
    _, rows = run("run", *more)
    named = {
        key.removeprefix("eval_").removesuffix("_samples"): row[key] for row in rows for key in row if "_samples" in key
    }
    assert sum("own" in name for name in named) == 1
    assert named["north"] > 0


def test_a_shard_that_ends_in_the_middle_of_a_record_stops_with_its_name(stories_file, run, tmp_path, capsys):
    """The stream reads ahead of the training by its buffer: the update under way is lost, nothing else."""
    path = stories_file("cut.jsonl", 900)
    path.write_bytes(path.read_bytes()[:-20])
    for streaming in ("False", "True"):
        with pytest.raises(SystemExit) as stop:
            run(streaming, "--dataset_name", str(path), "--streaming", streaming)
        err = capsys.readouterr().err
        assert stop.value.code == 2
        assert "cut.jsonl: line 900 is not valid JSON" in err


def test_a_sets_parts_are_not_streamed(tiny_data, run, capsys):
    data = ["--corpus", "tiny", "--data_cache_dir", str(tiny_data), "--vocab_size", "400"]
    if not (tiny_data / "calm").exists():
        prepare_tinystories.main(["pretokenize", *data, "--filtering", "features!=Twist", "--dataset_name", "calm"])
    args = DataArguments(dataset_name="calm", data_cache_dir=str(tiny_data), streaming="True")
    with pytest.raises(UsageError, match="--streaming True: calm is a protocol set"):
        open_stores(args, load_tokenizer(tiny_data / "tok400"))


@pytest.mark.parametrize("streaming", ["True", "False"])
def test_the_file_trained_on_is_in_domain_however_it_was_split(run, stories_file, tmp_path, two_parts, streaming):
    from lm_trials.data.datasets import dataset_of
    from lm_trials.evaluation.domains import in_domain, training_data
    from lm_trials.evaluation.flags import EvaluationArguments

    trained_on, other = stories_file("tales.jsonl", 900), stories_file("others.jsonl", 900, begin=900)
    run("run", "--dataset_name", str(trained_on), "--validation_split_percentage", "5", "--streaming", streaming)
    known = training_data(json.loads((tmp_path / "run" / "run.json").read_text()), two_parts)
    args = EvaluationArguments(data_cache_dir=str(two_parts))
    found = [in_domain(known, dataset_of(args, str(path)).select().parts) for path in (trained_on, other)]
    assert found == ["yes", "no"]


def test_a_stream_and_a_store_of_one_file_are_one_arm_to_a_comparison(run, stories_file, tmp_path, capsys):
    from lm_trials.trials.differences import find_variables
    from lm_trials.trials.runs import read_runs

    for number, streaming in enumerate(("True", "CacheStream", "False")):
        more = ("--dataset_name", str(stories_file("tales.jsonl", 900)), "--shuffle_buffer_size", "50")
        run(streaming, *more, "--streaming", streaming, "--seed", str(number))
    runs = read_runs([str(tmp_path / name) for name in ("True", "CacheStream", "False")])
    assert len({found.identity_text for found in runs}) == 1
    assert find_variables([found.outcome for found in runs]) == []
    run("other", "--dataset_name", str(stories_file("others.jsonl", 900, begin=900)), "--shuffle_buffer_size", "50")
    pair = read_runs([str(tmp_path / name) for name in ("False", "other")])
    assert [variable.name for variable in find_variables([found.outcome for found in pair])] == ["dataset_name"]
