"""`lm-trials rewards` from the command line."""

import pandas as pd
import pytest

import prepare_tinystories
from lm_trials.rewards import command


@pytest.fixture(scope="module")
def data(tiny_data, tmp_path_factory):
    place = tmp_path_factory.mktemp("rewards")
    (place / "tiny").symlink_to(tiny_data / "tiny")
    prepare_tinystories.main(["instruct", "--corpus", "tiny", "--data_cache_dir", str(place)])
    return place


def run(data, *more):
    flags = ["--data_cache_dir", str(data), "--dataset_name", "tiny-instruct-prompt", "--output_dir", str(data / "out")]
    return command.main([*flags, "--dataset_split", "train", "--num_prompts", "8", "--use_cpu", *map(str, more)])


def test_the_table_has_stories_and_cheats_by_rewards_and_judges(data, tiny_base, capsys):
    rows = run(
        data, "--reward_funcs", "words", "feature:Twist", "--base_name_or_path", tiny_base, "--judge_corpus", "tiny"
    )
    table = pd.read_csv(data / "out/rewards.csv")
    assert len(table) == len(rows)
    wide = table.pivot_table(index="text", columns="metric", values="estimate")
    assert len(wide) == 8
    assert wide.loc["records' own stories", "words"] == wide.loc["required words alone", "words"] == 1
    assert wide.loc["one word repeated", "base_loss"] > wide.loc["records' own stories", "base_loss"]
    assert wide["other_judge"].notna().all()
    shown = " ".join(capsys.readouterr().out.split())
    assert "8 prompts of tiny-instruct-prompt" in shown
    assert "required words alone" in shown
    assert "next lm-trials align --method grpo --model_name_or_path" in shown


def test_its_tables_fit_a_terminal_of_80_columns(data, capsys, monkeypatch):
    """A reward may have the name of the sum or of a judge."""
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("rewards", "distinct_2"):
        (data / "mine.py").write_text(f"def {name}(completions, **_): return [0.25] * len(completions)\n")
        run(data, "--reward_funcs", "words", "features", "length:120", "ends", f"{data}/mine.py:{name}")
        out = capsys.readouterr().out
        assert max(map(len, out.partition("results")[0].splitlines())) <= 80
        rewards, judges = (line.split()[-6:] for line in out.splitlines() if "required words alone" in line)
        assert rewards[4] == "0.25"
        assert rewards[:2] == ["1.00", "0.00"]
        assert float(rewards[5]) == pytest.approx(sum(map(float, rewards[:5])), abs=0.03)
        assert judges[-2:] == ["1.00", "0.00"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--reward_funcs is missing; give --reward_funcs NAME ..."),
        (["--reward_funcs", "word"], "--reward_funcs word: unknown reward; did you mean words?"),
        (["--reward_funcs", "words", "--reward_weights", "1", "2"], "--reward_weights has 2 weights and"),
        (["--reward_funcs", "words", "--base_name_or_path", "./nowhere"], "nowhere"),
        (
            ["--reward_funcs", "words", "--dataset_name", "tiny"],
            "--dataset_name: tiny is a corpus of stories and has no prompts",
        ),
    ],
)
def test_a_mistake_is_one_line(flags, message, data, capsys):
    with pytest.raises(SystemExit) as left:
        run(data, *flags)
    assert left.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
