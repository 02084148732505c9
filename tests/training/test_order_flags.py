"""The flags of the order: what they mean, and what is refused before anything is read."""

import json

import pytest
from refusals import error_line, usage_error

import sft_lora
import train_gpt2
from lm_trials.flags import parse_arguments
from lm_trials.training.flags import DataArguments, check_reading
from lm_trials.training.order_flags import Condition, check_covers, read_schedule


def settled(*argv):
    (flags,) = parse_arguments(["--block_size", "8", *argv], (DataArguments,), "", check=check_reading)
    return flags


def test_a_default_and_the_same_value_given_are_one_arm():
    assert settled("--order_by", "words") == settled("--order_by", "words", "--order", "ascending")
    assert settled("--order_by", "words") != settled("--order_by", "words", "--order", "descending")
    assert settled("--keep", "words >= 50  and tokens<9") == settled("--keep", "words>=50 and tokens<9")
    assert settled("--order", "random") == settled()
    assert settled("--order", "file") == settled("--shuffle_buffer_size", "1") != settled()
    assert settled().phases == []


def test_conditions_are_joined_by_and():
    conditions = settled("--keep", "words>=50 and tokens < 1e3").conditions()
    assert conditions == [Condition("words", ">=", 50.0), Condition("tokens", "<", 1000.0)]
    assert settled("--keep", "words>=50 and tokens<9").metrics == ["words", "tokens"]


def test_a_schedule_is_its_content_and_not_its_file(tmp_path):
    file, other = tmp_path / "a.yaml", tmp_path / "b.yaml"
    file.write_text(
        "- updates: 1-5 # easy\n  order_by: words\n  keep: words<=90\n- updates: 6\n- {updates: 7-, order: file}\n"
    )
    phases = [{"updates": "1-5", "order_by": "words", "order": "ascending", "keep": "words<=90"}, {"updates": "6"}]
    other.write_text(json.dumps([*phases, {"order": "file", "updates": "7-"}]))
    flags = settled("--order_schedule", str(file))
    assert flags == settled("--order_schedule", str(other)) == settled("--order_schedule", flags.order_schedule)
    assert [phase.span for phase in flags.phases] == [(1, 5), (6, 6), (7, None)]
    assert [phase.describe() for phase in flags.phases] == [
        "by words, ascending; only words<=90", "random", "as stored",
    ]  # fmt: skip
    other.write_text(json.dumps(phases))
    assert settled("--order_schedule", str(other)) != flags


WRONG = [
    (["--order", "descending"], "--order descending needs --order_by"),
    (["--order", "random", "--order_by", "words"], "--order random and --order_by cannot be combined"),
    (["--order", "upwards"], "'ascending', 'descending', 'random', 'file'"),
    (["--order_window", "9"], "--order_window 9 needs --order_by"),
    (["--order_window", "1", "--order_by", "words"], "--order_window 1 must be at least 2"),
    (["--keep", "words"], "--keep words is not METRIC>VALUE"),
    (["--keep", "words>nan"], "--keep words>nan is not METRIC>VALUE"),
    (["--keep", "words>1 and"], "is not METRIC>VALUE"),
    (["--order_schedule", "none.yaml"], "--order_schedule none.yaml: it cannot be read (No such file"),
    (["--order_schedule", "[1"], "--order_schedule [1: "),
    (["--order_schedule", "[]"], "it must be a list of phases"),
    (["--order_schedule", "[{}]", "--keep", "a>1"], "--order_schedule [{}] and --keep cannot be combined"),
]  # fmt: skip


@pytest.mark.parametrize(("argv", "message"), WRONG)
@pytest.mark.parametrize("command", [train_gpt2.main, sft_lora.main], ids=["train", "tune"])
def test_a_mistake_is_one_line_before_anything_is_loaded(command, capsys, argv, message):
    needed = ["--model_name_or_path", "nothing", "--dataset_name", "nothing"]
    assert message in error_line(capsys, command, *needed, *argv)


OF_TRAIN = [
    (["--order_by", "words", "--streaming", "True"], "--order_by with --streaming True: sorting and filtering need"),
    (["--keep", "words>1", "--streaming", "CacheStream"], "--keep with --streaming CacheStream"),
    (["--order_schedule", '[{"updates": "1-"}]', "--streaming", "True"], "--order_schedule with --streaming True"),
    (["--order", "file", "--shuffle_buffer_size", "9"], "--order file and --shuffle_buffer_size 9"),
    (["--order_by", "words", "--shuffle_buffer_size", "9"], "--shuffle_buffer_size 9 has no effect"),
]  # fmt: skip


@pytest.mark.parametrize(("argv", "message"), OF_TRAIN)
def test_an_order_of_a_stream_and_a_buffer_without_effect_are_refused(argv, message):
    assert message in usage_error(settled, *argv)


def test_what_needs_no_metric_works_with_a_stream():
    assert settled("--order", "file", "--streaming", "True").shuffle_buffer_size == 1
    assert settled("--order_by", "words", "--order_window", "9", "--shuffle_buffer_size", "9").phases


SCHEDULES = [
    ([{"updates": "1-9"}, {"updates": "11-"}], "no phase has updates 10; let phase 2 begin at 10"),
    ([{"passes": "4-"}], "no phase has passes 1 to 3"),
    ([{"updates": "1-9"}, {"updates": "9-"}], "phases 1 and 2 overlap; let phase 2 begin at 10"),
    ([{"updates": "1-"}, {"updates": "9-"}], "phase 1 has no end"),
    ([{"updates": "5-3"}], "updates 5-3 is no range"),
    ([{"updates": "soon"}], "updates soon is no range"),
    ([{"updates": "1-9"}, {"passes": "2-"}], "phase 2 counts passes and phase 1 updates"),
    ([{"updates": "1-9", "passes": "1"}], "phase 1: --updates 1-9 and --passes cannot be combined"),
    ([{"order_by": "words"}], "phase 1: it has neither updates nor passes"),
    ([{"updates": "1-", "order": "descending"}], "phase 1: --order descending needs --order_by"),
    ([{"updates": "1-", "sort_by": "words"}], "phase 1: unrecognized flag sort_by"),
    ([{"updates": "1-", "keep": "words"}], "phase 1: --keep words is not METRIC>VALUE"),
    ("words", "it must be a list of phases"),
]  # fmt: skip


@pytest.mark.parametrize(("phases", "message"), SCHEDULES)
def test_a_schedule_with_a_mistake_is_refused(tmp_path, phases, message):
    file = tmp_path / "s.yaml"
    file.write_text(json.dumps(phases))
    said = usage_error(read_schedule, str(file))
    assert said.startswith("--order_schedule ")
    assert message in said


def test_a_schedule_covers_the_run():
    phases = read_schedule('[{"updates": "1-9"}, {"updates": "10-20"}]')
    for reached in (10, 20):
        check_covers(phases, reached)
    assert "begins at 10, and the updates of the run end at 9" in usage_error(check_covers, phases, 9)
    assert "ends at 20, and the updates of the run end at 21" in usage_error(check_covers, phases, 21)
