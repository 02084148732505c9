"""Pairs: read from whatever holds them, once, with the same rows, names and splits whatever the file."""

import json

import pytest
from datasets import Dataset, DatasetDict
from refusals import usage_error

from lm_trials.console import UsageError
from lm_trials.data.datasets import open_dataset
from lm_trials.pairs import pairs
from lm_trials.pairs.layouts import as_conversation
from lm_trials.pairs.pairs import MESSAGES, read_row, side_row, write_pairs
from lm_trials.stories.records import SPLITS, split_of

PAIRS = [{"prompt": f"How far is city {n}?\n", "completion": f" {n}.5 km\nor so, 'é'"} for n in range(40)]
TURNS = [
    {"messages": [{"role": "user", "content": f"Hello {n}"}, {"role": "assistant", "content": f"Hi {n}"}]}
    for n in range(40)
]
PROMPTED = [{"prompt": row["messages"][:1], "completion": row["messages"][1:]} for row in TURNS]
TEXTS = [{"text": f"City {n} is far,\n\nvery far."} for n in range(40)]
PREFERRED = [
    {"prompt": f"How far is city {n}?\n", "chosen": f" {n}.5 km", "rejected": f"Far, 'é' {n}"} for n in range(40)
]
CHATS = [
    {
        "prompt": row["messages"][:1],
        "chosen": row["messages"][1:],
        "rejected": [{"role": "assistant", "content": "No"}],
    }
    for row in TURNS
]
KINDS = {
    **{"pairs": PAIRS, "turns": TURNS, "prompted": PROMPTED, "texts": TEXTS},
    **{"preferences": PREFERRED, "conversation_preferences": CHATS},
}


def write_as(form, rows, folder):
    """Write rows as a file or folder of one form, by `datasets`' own writers where it has them."""
    data = Dataset.from_list(rows)
    if form == "saved":
        data.save_to_disk(folder / "rows")
        return folder / "rows"
    path = folder / f"rows.{form}"
    if form == "jsonl":
        path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    elif form == "json":
        path.write_text(json.dumps(rows))
    elif form == "csv":
        data.to_csv(path, index=False)
    else:
        data.to_parquet(path)
    return path


def contents(prepared):
    """Return the rows of a data set of pairs by split, without their names and empty columns."""
    return {
        split: [{key: value for key, value in row.items() if key != "record_id" and value is not None} for row in rows]
        for split, rows in prepared.splits.items()
    }


def everything(prepared):
    return [row for rows in contents(prepared).values() for row in rows]


FORMS = [(form, kind) for form in ("jsonl", "json", "parquet", "saved") for kind in KINDS]


@pytest.mark.parametrize(("form", "kind"), [*FORMS, ("csv", "pairs"), ("csv", "texts"), ("csv", "preferences")])
def test_every_kind_is_read_from_every_form(tmp_path, form, kind):
    rows = KINDS[kind]
    prepared = open_dataset(str(write_as(form, rows, tmp_path)), tmp_path / "data").pairs()
    assert prepared.kind == {"turns": "conversations", "prompted": "conversations"}.get(kind, kind)
    wanted = rows
    if kind == "turns":
        wanted = [{**row, "num_prompt": 0} for row in rows]
    if kind == "prompted":
        wanted = [{**row, "num_prompt": 1} for row in TURNS]
    key = json.dumps
    assert sorted(everything(prepared), key=key) == sorted(wanted, key=key)
    assert set(prepared.described) == {"name", "kind", "content", "rows"}
    assert sum(prepared.described["rows"].values()) == 40


def test_a_text_file_holds_texts(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("City 1 is far.\n<|endoftext|>\n\nCity 2\nis near.\n<|endoftext|>\n")
    prepared = open_dataset(str(path), tmp_path / "data").pairs()
    assert prepared.kind == "texts"
    assert everything(prepared) == [{"text": "City 1 is far."}, {"text": "City 2\nis near."}]


def test_what_stands_beside_is_left_out_and_told(tmp_path, capsys):
    rows = [{**row, "city": f"city {n}", "record_id": "x"} for n, row in enumerate(PAIRS)]
    with_more = open_dataset(str(write_as("jsonl", rows, tmp_path)), tmp_path / "data").pairs()
    assert capsys.readouterr().err.endswith("rows.jsonl: columns that are not used: city, record_id\n")
    assert set(with_more.splits["train"].column_names) == {"record_id", "prompt", "completion"}
    (tmp_path / "plain").mkdir()
    plain = open_dataset(str(write_as("jsonl", PAIRS, tmp_path / "plain")), tmp_path / "data").pairs()
    assert with_more.described["content"] == plain.described["content"]
    assert capsys.readouterr().err == ""


EMPTY = ["", " \n\t", "\u200b", "\xa0\ufeff"]


@pytest.mark.parametrize("empty", EMPTY)
@pytest.mark.parametrize("form", ["jsonl", "parquet"])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_with_nothing_to_learn_are_left_out_and_told(tmp_path, capsys, kind, form, empty):
    def emptied(text):
        return json.loads(json.dumps(KINDS[kind][0]).replace(json.dumps(text), json.dumps(empty)))

    texts = (
        ["Hello 0", "Hi 0"] if kind in ("turns", "prompted", "conversation_preferences") else [*KINDS[kind][0].values()]
    )
    rows = [*KINDS[kind][1:], *map(emptied, texts)]
    path = write_as(form, rows, tmp_path)
    prepared = open_dataset(str(path), tmp_path / "data").pairs()
    said = f"{path}: left out for an empty prompt, answer or text: {len(texts)} rows, the first is {path}: "
    assert said in capsys.readouterr().err
    assert open_dataset(str(path), tmp_path / "data").pairs().described == prepared.described
    assert said in capsys.readouterr().err  # each time, and not only when it is read
    assert len(everything(prepared)) == len(KINDS[kind]) - 1
    with pytest.raises(UsageError, match="has only rows with an empty prompt, answer or text"):
        open_dataset(str(write_as(form, rows[-1:], tmp_path)), tmp_path / "data").pairs()


@pytest.mark.parametrize("message", [{"role": "system", "content": ""}, {"role": "tool", "content": ""}])
def test_other_messages_may_be_empty(message):
    rows = [{**TURNS[0], "messages": [message, *TURNS[0]["messages"]]}]
    assert not pairs._is_empty(read_row(rows[0])[1])


CALL = {"type": "function", "function": {"name": "far", "arguments": {"to": "Rome", "in": {"unit": "km"}}}}
OTHER_CALL = {"type": "function", "function": {"name": "far", "arguments": {"of": "Paris", "in": {"digits": 2}}}}


@pytest.mark.parametrize("form", ["jsonl", "json", "parquet", "saved"])
def test_fields_of_messages_are_kept_without_the_nulls_of_arrow(tmp_path, capsys, form):
    rows = []
    for number in range(40):
        called = {"role": "assistant", "tool_calls": [CALL if number % 2 else OTHER_CALL]}
        result = {"role": "tool", "name": "far", "content": f"{number} km"}
        rows.append({"messages": [TURNS[number]["messages"][0], called, result, TURNS[number]["messages"][1]]})
        rows[-1]["tools"] = [{"name": "far", "parameters": {"to": "str"} if number % 2 else {"of": "str"}}]
    prepared = open_dataset(str(write_as(form, rows, tmp_path)), tmp_path / "data").pairs()
    found = [as_conversation(row) for split in prepared.splits.values() for row in split]
    as_json = {json.dumps({"messages": messages, **options}, sort_keys=True) for messages, _, options in found}
    assert as_json == {json.dumps(row, sort_keys=True) for row in rows}
    assert "note:" not in capsys.readouterr().err


def test_a_null_that_a_json_file_gives_is_kept(tmp_path):
    call = {"function": {"name": "far", "arguments": {"to": None}}}
    rows = [{"messages": [TURNS[0]["messages"][0], {"role": "assistant", "content": None, "tool_calls": [call]}]}] * 3
    prepared = open_dataset(str(write_as("jsonl", rows, tmp_path)), tmp_path / "data").pairs()
    assert json.loads(everything(prepared)[0]["further"])["messages"] == [{}, {"tool_calls": [call]}]


def message_of(**fields):
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", **fields}]}
    (_, message), _, _ = as_conversation(read_row(row)[1])
    return message


def test_a_message_in_the_forms_of_other_libraries():
    plain = message_of()
    assert message_of(content=[{"type": "text", "text": "b"}]) == plain
    assert message_of(tool_calls=[], name=None, reasoning_content="") == plain
    quoted = {"function": {"name": "far", "arguments": json.dumps({"to": "Rome"})}}
    parsed = {"function": {"name": "far", "arguments": {"to": "Rome"}}}
    assert message_of(tool_calls=[quoted]) == message_of(tool_calls=[parsed]) == {**plain, "tool_calls": [parsed]}
    assert message_of(weight=0) == {**plain, "weight": 0} != plain


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"content": [{"type": "image"}]}, "has the parts image; only one part of type text is supported"),
        ({"content": [{"type": "text", "text": "a"}] * 2}, "has the parts text, text; only one"),
        ({"content": []}, "has the parts none; only one"),
        ({"content": ["a"]}, "has the parts str; only one"),
        ({"content": None}, "a message has role and content"),
        ({"tool_calls": "far"}, "tool_calls is 'far'; it must be a list of objects"),
        ({"tool_calls": [{"function": {"arguments": "{to"}}]}, "arguments of a tool call are '{to'; they must be JSON"),
    ],
)
def test_a_message_that_cannot_be_rendered_is_refused(fields, reason):
    with pytest.raises(UsageError, match=reason):
        message_of(**fields)


def test_splits_follow_from_the_row(tmp_path):
    whole = open_dataset(
        str(write_as("jsonl", PAIRS * 10, tmp_path)), tmp_path / "data", validation_split_percentage=20
    ).pairs()
    (tmp_path / "half").mkdir()
    half = open_dataset(
        str(write_as("csv", PAIRS[::-2], tmp_path / "half")), tmp_path / "data", validation_split_percentage=20
    ).pairs()
    for prepared in (whole, half):
        for split, rows in prepared.splits.items():
            assert {split_of(name, 20) for name in rows["record_id"]} <= {split}
    place = {row["prompt"]: split for split, rows in contents(whole).items() for row in rows}
    assert all(place[row["prompt"]] == split for split, rows in contents(half).items() for row in rows)
    assert set(place.values()) >= {"train", "validation"}
    assert len(place) == 40  # a row that stands ten times is in one split


@pytest.mark.parametrize("form", ["jsonl", "parquet", "saved"])
def test_own_splits_are_kept(tmp_path, form):
    own = {"train": PAIRS[:30], "validation": PAIRS[30:36], "test": PAIRS[36:]}
    folder = tmp_path / "own"
    if form == "saved":
        DatasetDict({split: Dataset.from_list(rows) for split, rows in own.items()}).save_to_disk(folder)
    else:
        folder.mkdir()
        for split, rows in own.items():
            write_as(form, rows, folder).rename(folder / f"{split}.{form}")
    prepared = open_dataset(str(folder), tmp_path / "data").pairs()
    assert contents(prepared) == own
    assert any(split_of(name) != "test" for name in prepared.splits["test"]["record_id"])  # by hash it were another


def test_a_source_without_a_validation_split_takes_one_by_hash(tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    write_as("jsonl", PAIRS, folder).rename(folder / "train.jsonl")
    with pytest.raises(UsageError, match=r"has no validation split, only train; .* --validation_split_percentage 1"):
        open_dataset(str(folder), tmp_path / "data").pairs()
    assert not (tmp_path / "data").exists()
    prepared = open_dataset(str(folder), tmp_path / "data", validation_split_percentage=30).pairs()
    assert len(prepared.splits["validation"]) > 3
    assert len(prepared.splits["test"]) == 0
    with pytest.raises(UsageError, match="--validation_split_percentage 70"):
        open_dataset(str(folder), tmp_path / "data", validation_split_percentage=70).pairs()


DAMAGED = [
    (
        {"prompt": "How far?"},
        "no columns prompt and completion, messages, text, or prompt, chosen and rejected; the columns are prompt; ",
    ),
    ({"question": "a", "answer": "b"}, "the columns are question, answer; rename them"),
    ({"story": "One day."}, "are story; make pairs of stories with lm-trials prepare ingest and instruct"),
    ({"prompt": "a", "completion": 3}, "prompt is text and completion is int; both must be text, or both messages"),
    ({"prompt": "a", "completion": None}, "completion is missing a value; add it, or remove the row"),
    ({"prompt": [], "completion": []}, r"prompt is \[\]; it must be text, or a list of messages"),
    ({"messages": [{"role": "user"}]}, "a message has role and content"),
    ({"messages": ["Hello"]}, "a message has role and content"),
    ({"messages": [{"role": "human", "content": "a"}]}, "a message of messages has the role 'human'; valid: assistant"),
    ({"messages": [{"role": "user", "content": 3}]}, "content of a message of messages is int; it must be text"),
    ({"messages": "[{'role': 'user'}]"}, r'messages is "\[.*; it must be a list of messages with role and content'),
    ({"conversations": [{"from": "human", "value": "a"}]}, "rename it to messages, each with role .* and content"),
    ({"text": ["a"]}, "text is list; it must be text"),
    ({"messages": [{"role": "user", "content": "a"}]}, "a conversation has no answer; add a last message of role assi"),
    (
        {"prompt": TURNS[0]["messages"], "completion": [{"role": "user", "content": "a"}]},
        "a conversation has no answer; add a last message",
    ),
    ({"prompt": "a\ud800", "completion": "b"}, r"'\\ud800' is half of a surrogate pair"),
    (["a", "b"], r"\['a', 'b'\] is not an object; give rows with prompt and completion"),
    ({"text": "a"}, "a row of texts after rows of pairs; give one kind"),
]


@pytest.mark.parametrize(("row", "reason"), DAMAGED)
def test_a_damaged_row_is_named_with_its_place(tmp_path, row, reason):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, [*PAIRS[:2], row, *PAIRS[2:]])))
    with pytest.raises(UsageError, match=rf"rows\.jsonl: line 3: .*{reason}"):
        open_dataset(str(path), tmp_path / "data").pairs()
    assert [entry.name for entry in tmp_path.iterdir()] == ["rows.jsonl"]  # nothing half-written


@pytest.mark.parametrize(("form", "place"), [("csv", "rows.csv"), ("parquet", "rows.parquet"), ("saved", "rows")])
def test_other_columns_are_named_in_every_form(tmp_path, form, place):
    path = write_as(form, [{"question": "How far?", "answer": "3 km"}], tmp_path)
    with pytest.raises(UsageError, match=rf"{place}: \w+ \d: no columns .* are question, answer; rename them"):
        open_dataset(str(path), tmp_path / "data").pairs()


def test_prompts_and_answers_that_are_of_two_kinds_are_refused():
    answer = [{"role": "assistant", "content": "b"}]
    with pytest.raises(UsageError, match="prompt is text and completion is list; both must be text"):
        read_row({"prompt": "a", "completion": answer})
    with pytest.raises(UsageError, match="completion is text and prompt is list"):
        read_row({"prompt": answer, "completion": "b"})
    with pytest.raises(UsageError, match="prompt is 3; it must be text"):
        read_row({"prompt": 3, "completion": answer})


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"chosen": TURNS[0]["messages"], "rejected": TURNS[1]["messages"]}, "move what both sides share to a column"),
        ({**CHATS[0], "prompt": "Hello"}, "prompt is text and chosen is list; prompt, chosen and rejected must all be"),
        ({**CHATS[0], "rejected": TURNS[0]["messages"]}, "rejected has a message of role user; move what both sides"),
    ],
)
def test_preferences_of_another_form_are_refused(row, reason):
    assert reason in usage_error(read_row, row)


@pytest.mark.parametrize("kind", ["preferences", "conversation_preferences"])
def test_preferences_with_two_equal_sides_are_refused(tmp_path, kind):
    rows = [{**row, "rejected": row["chosen"]} if n in (3, 7) else row for n, row in enumerate(KINDS[kind])]
    path = write_as("jsonl", rows, tmp_path)
    line = usage_error(open_dataset(str(path), tmp_path / "data").pairs)
    assert line.startswith(f"{path}: line 4: chosen and rejected are equal, and nothing is preferred; 2 such rows: ")
    assert not list((tmp_path / "data").glob("*"))


def test_a_side_of_a_preference_is_a_pair_or_a_conversation():
    """With the tools of a message, which is no role and no text."""
    assert side_row({**PREFERRED[0], "record_id": "a", "ended_rejected": False}, "rejected") == {
        **{"record_id": "a", "prompt": PREFERRED[0]["prompt"], "completion": PREFERRED[0]["rejected"], "ended": False}
    }
    called = [{"role": "assistant", "content": "", "tool_calls": [CALL]}]
    _, row = read_row({**CHATS[0], "chosen": called, "tools": [{"name": "far"}]})
    assert as_conversation(side_row(row, "chosen")) == ([*CHATS[0]["prompt"], *called], 1, {"tools": [{"name": "far"}]})
    rejected = [*CHATS[0]["prompt"], *CHATS[0]["rejected"]]
    assert as_conversation(side_row(row, "rejected")) == (rejected, 1, {"tools": [{"name": "far"}]})


def test_what_is_prepared_is_read_once(tmp_path, monkeypatch):
    path = str(write_as("jsonl", PAIRS, tmp_path))
    first = open_dataset(path, tmp_path / "data").pairs()
    monkeypatch.setattr(pairs, "write_pairs", lambda *_: pytest.fail("it was read again"))
    again = open_dataset(path, tmp_path / "data").pairs()
    assert again.described == first.described
    assert contents(again) == contents(first)
    by_name = open_dataset(first.described["name"], tmp_path / "data").pairs()
    by_path = open_dataset(str(tmp_path / "data" / first.described["name"]), tmp_path / "elsewhere").pairs()
    assert by_name.described == by_path.described == first.described
    monkeypatch.undo()
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, PAIRS[1:])))
    changed = open_dataset(path, tmp_path / "data").pairs()
    assert changed.described["name"] != first.described["name"]
    assert len(everything(changed)) == 39


def test_the_content_is_what_the_rows_say_and_not_where_they_stand(tmp_path):
    by_form = {}
    for form in ("jsonl", "json", "csv", "parquet", "saved"):
        (tmp_path / form).mkdir()
        by_form[form] = (
            open_dataset(str(write_as(form, PAIRS, tmp_path / form)), tmp_path / "data").pairs().described["content"]
        )
    assert len(set(by_form.values())) == 1
    (tmp_path / "other").mkdir()
    rows = [*PAIRS[:-1], {**PAIRS[-1], "completion": "4 km"}]
    other = (
        open_dataset(str(write_as("jsonl", rows, tmp_path / "other")), tmp_path / "data").pairs().described["content"]
    )
    assert other not in by_form.values()


def test_another_process_may_be_faster(tmp_path, monkeypatch):
    """Two processes of one launch prepare the same file; the slower one takes what is there."""

    def slower(rows, folder, *more):
        rows = list(rows)
        write_pairs(rows, folder, *more)
        return write_pairs(rows, folder, *more)

    monkeypatch.setattr(pairs, "write_pairs", slower)
    assert len(everything(open_dataset(str(write_as("jsonl", PAIRS, tmp_path)), tmp_path / "data").pairs())) == 40


def test_a_name_that_is_nothing_says_what_there_is(tmp_path, tiny_data):
    path = write_as("jsonl", PAIRS, tmp_path)
    made = open_dataset(str(path), tmp_path / "data").pairs().described["name"]
    with pytest.raises(UsageError, match=rf"no/such/rows.jsonl does not exist; .*prepared in .*: {made}"):
        open_dataset("no/such/rows.jsonl", tmp_path / "data").pairs()
    with pytest.raises(UsageError, match="no data set is named"):
        open_dataset("", tmp_path / "empty").pairs()
    for name in ("tiny", str(tiny_data / "tiny")):
        with pytest.raises(UsageError, match=r"is a corpus of stories and has no prompts .* instruct --corpus tiny"):
            open_dataset(name, tiny_data).pairs()


def test_options_of_a_source_are_refused_for_what_is_prepared(tmp_path):
    made = open_dataset(str(write_as("jsonl", PAIRS, tmp_path)), tmp_path / "data").pairs().described["name"]
    with pytest.raises(UsageError, match=f"--validation_split_percentage 5: {made} is prepared"):
        open_dataset(made, tmp_path / "data", validation_split_percentage=5).pairs()
    with pytest.raises(UsageError, match="--dataset_config_name small: "):
        open_dataset(made, tmp_path / "data", dataset_config_name="small").pairs()


def test_a_taken_folder_and_an_empty_train_split_are_refused(tmp_path):
    row = {"record_id": "a", "prompt": "How far?", "completion": "3 km"}
    with pytest.raises(UsageError, match="far has no row for the train split; give more rows"):
        write_pairs([("test", row)], tmp_path / "far", "pairs", {})
    assert not (tmp_path / "far").exists()
    manifest = write_pairs([("train", row)], tmp_path / "far", "pairs", {"source": {"by": "hand"}})
    assert manifest["rows"] == {"train": 1, "validation": 0, "test": 0}
    assert manifest["source"] == {"by": "hand"}
    with pytest.raises(UsageError, match="far already exists; remove it"):
        write_pairs([("train", row)], tmp_path / "far", "pairs", {})
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="file already exists"):
        write_pairs([("train", row)], tmp_path / "file", "pairs", {})


def test_rows_that_break_off_leave_nothing(tmp_path):
    def rows():
        yield "train", {"record_id": "a", "prompt": "How far?", "completion": "3 km"}
        raise UsageError("line 2 is broken")

    with pytest.raises(UsageError, match="line 2 is broken"):
        write_pairs(rows(), tmp_path / "data" / "far", "pairs", {})
    assert list(tmp_path.iterdir()) == []


def test_prepared_rows_have_the_columns_of_their_kind(tmp_path):
    prepared = open_dataset(str(write_as("jsonl", TURNS, tmp_path)), tmp_path / "data").pairs()
    assert set(prepared.splits) == set(SPLITS)
    for rows in prepared.splits.values():
        assert rows.features["messages"] == MESSAGES
