"""A language model as the judge: what it is asked, what is kept, what its faults and its key lead to."""

import json
import re
import shutil
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score
from tiny_models import tiny_model

import eval_checkpoint
import prepare_tinystories
from lm_trials.console import UsageError
from lm_trials.evaluation import remote_judge
from lm_trials.evaluation.feature_scores import Generation, score_features, score_judge
from lm_trials.evaluation.flags import EvaluationArguments
from lm_trials.evaluation.remote_judge import EXAMPLES, KEY, PLAIN, open_judge, parse_answer
from lm_trials.stories.features import FEATURES
from lm_trials.stories.generated.detectors import detect_features
from lm_trials.stories.generated.generator import generate_stories
from lm_trials.tokens.tokenizers import load_tokenizer
from lm_trials.trials.measurements import read_measurement
from lm_trials.trials.runs import Run

SECRET = "sk-private-0123"
STORIES = [record["story"] for record in generate_stories(6, seed=3)]


class Endpoint(ThreadingHTTPServer):
    """An OpenAI-compatible endpoint on loopback that answers as the detectors do; a context manager.

    Attributes:
        faults: what the next requests get instead: a status, or "hang up".
        answer: from the feature and whether the story has it to the text, changed while the server runs.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.questions, self.keys, self.faults, self.lock = [], [], [], threading.Lock()
        self.answer = lambda feature, has: "Yes" if has else "No"
        self.body = None
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_POST(self):
        endpoint, question = self.server, self.rfile.read(int(self.headers["Content-Length"]))
        with endpoint.lock:
            endpoint.questions.append(json.loads(question))
            endpoint.keys.append(self.headers.get("Authorization"))
            fault = endpoint.faults.pop(0) if endpoint.faults else None
        if fault == "hang up":
            self.close_connection = True
            return
        text = json.loads(question)["messages"][-1]["content"]
        story, name = re.fullmatch(r"<story>\n(.*)\n</story>\nDoes the story have (.*)\? .*", text, re.DOTALL).groups()
        (feature,) = [feature for feature, (asked, _) in EXAMPLES.items() if asked == name]
        answer = endpoint.answer(feature, feature in detect_features(story))
        body = (
            endpoint.body or json.dumps({"choices": [{"message": {"role": "assistant", "content": answer}}]}).encode()
        )
        if fault:
            body = f"no: {self.headers.get('Authorization')}\x1b[31m".encode()
        self.send_response(fault or 200)
        self.send_header("Retry-After", "3")
        self.send_header("Location", "http://127.0.0.1:9/elsewhere")
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def endpoint():
    with Endpoint() as started:
        yield started


@pytest.fixture
def waits(monkeypatch):
    """How long was waited between attempts, without waiting."""
    waited = []
    monkeypatch.setattr(remote_judge, "time", SimpleNamespace(sleep=waited.append))
    return waited


def judge_at(url, tmp_path, model="m"):
    return open_judge(EvaluationArguments(judge_url=url, judge_model=model, data_cache_dir=str(tmp_path)))


def detected(stories):
    return [{feature: feature in detect_features(story) for feature in FEATURES} for story in stories]


def test_the_examples_have_what_they_show():
    assert EXAMPLES.keys() == set(FEATURES)
    assert all(feature in detect_features(story) for feature, (_, story) in EXAMPLES.items())
    assert detect_features(PLAIN) == ()


@pytest.mark.parametrize("text", ["Yes", " yes.", "**Yes**", "YES!", "\n\nYes", '"Yes"', "Yes\n\nThe dog spoke."])
def test_yes_is_yes_and_no_is_no(text):
    assert parse_answer(text) is True
    assert parse_answer(re.sub("yes", "No", text, flags=re.IGNORECASE)) is False


@pytest.mark.parametrize(
    "text", ["", "Yesterday", "Not sure", "I say yes", "Yes, or no", "No one knows", "1", "Yes it is"]
)
def test_what_is_neither_is_unknown(text):
    assert parse_answer(text) is None


def test_the_question_has_two_examples_and_no_randomness(endpoint, tmp_path):
    judge_at(endpoint.url, tmp_path).verdicts(STORIES[:1])
    assert len(endpoint.questions) == len(FEATURES)
    (question,) = [q for q in endpoint.questions if "a twist?" in q["messages"][0]["content"]]
    assert question["temperature"] == 0
    assert question["model"] == "m"
    assert [(m["role"], m["content"] in ("Yes", "No")) for m in question["messages"]] == [
        *(("user", False), ("assistant", True)) * 2, ("user", False)
    ]  # fmt: skip
    assert [m["content"] for m in question["messages"][1::2]] == ["Yes", "No"]
    stories = [EXAMPLES["Twist"][1], PLAIN, STORIES[0]]
    for message, story in zip(question["messages"][::2], stories, strict=True):
        assert message["content"] == f"<story>\n{story}\n</story>\nDoes the story have a twist? Answer Yes or No."


def test_answers_are_asked_for_once(endpoint, tmp_path, waits):
    judge = judge_at(endpoint.url, tmp_path)
    assert judge.verdicts([*STORIES, STORIES[0]]) == detected([*STORIES, STORIES[0]])
    assert len(endpoint.questions) == len(STORIES) * len(FEATURES)
    endpoint.answer = lambda *_: "No"
    judge.verdicts(STORIES[:2])
    assert len(endpoint.questions) == len(STORIES) * len(FEATURES)
    # Another model is another judge.
    assert not any(judge_at(endpoint.url, tmp_path, "other").verdicts(STORIES[:1])[0].values())
    endpoint.shutdown()
    endpoint.server_close()
    assert judge.verdicts(STORIES) == detected(STORIES)
    with pytest.raises(UsageError, match="no answer after 6 attempts"):
        judge.verdicts(["A story that was never judged."])


def test_a_broken_answer_file_is_named(endpoint, tmp_path):
    judge = judge_at(endpoint.url, tmp_path)
    judge.verdicts(STORIES[:1])
    file = next(judge.folder.rglob("*.json"))
    file.write_text("{")
    with pytest.raises(UsageError, match=file.name):
        judge.verdicts(STORIES[:1])


def test_a_busy_server_is_asked_again(endpoint, tmp_path, waits, monkeypatch):
    monkeypatch.setattr(remote_judge, "AT_ONCE", 1)
    endpoint.faults = [429, 503, "hang up", 500]
    assert judge_at(endpoint.url, tmp_path).verdicts(STORIES[:2]) == detected(STORIES[:2])
    assert waits == [3, 3, 4, 8]  # as the server asks, else longer each time
    assert len(endpoint.questions) == 2 * len(FEATURES) + 4


def test_a_server_that_stays_busy_is_an_error_and_what_was_done_is_kept(endpoint, tmp_path, waits, monkeypatch):
    monkeypatch.setattr(remote_judge, "AT_ONCE", 1)
    judge = judge_at(endpoint.url, tmp_path)
    judge.verdicts(STORIES[:1])
    endpoint.faults = [None] * 5 + [503] * 6  # the last question: no thread is left that asks
    with pytest.raises(UsageError, match=rf"{endpoint.url}: no answer after 6 attempts \(503.*same command") as raised:
        judge.verdicts(STORIES[:2])
    assert "\n" not in str(raised.value)
    assert len([*judge.folder.rglob("*.json")]) == 2 * len(FEATURES) - 1
    asked = len(endpoint.questions)
    assert judge.verdicts(STORIES[:2]) == detected(STORIES[:2])
    assert len(endpoint.questions) == asked + 1


def test_a_silent_server_is_a_timeout(endpoint, tmp_path, waits, monkeypatch):
    monkeypatch.setattr(remote_judge, "TIMEOUT", 0.05)
    slow = threading.Event()
    endpoint.answer = lambda *_: slow.wait(5)
    with pytest.raises(UsageError, match=r"no answer after 3 attempts \(timed out\)"):
        judge_at(endpoint.url, tmp_path).check()
    slow.set()


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, f"401 Unauthorized; set the environment variable {KEY} to a valid key"),
        (404, "404 Not Found; check the URL, which usually ends in /v1, and --judge_model"),
        (400, "400 Bad Request; check --judge_model m; the server says: no: Bearer ... [31m"),
        (307, "307 Temporary Redirect; check --judge_model m"),
    ],
)
def test_a_refusal_is_an_error_at_once_without_the_key(endpoint, tmp_path, waits, monkeypatch, status, message):
    monkeypatch.setenv(KEY, SECRET)
    endpoint.faults = [status]
    with pytest.raises(UsageError) as raised:
        judge_at(endpoint.url, tmp_path).check()
    assert f"--judge_url {endpoint.url}: {message}" in str(raised.value)
    assert SECRET not in str(raised.value)
    assert waits == []
    assert len(endpoint.questions) == 1


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"choices": []}', b"\xff"])
def test_an_answer_in_another_form_is_an_error_and_not_kept(endpoint, tmp_path, body):
    endpoint.body = body
    with pytest.raises(UsageError, match="usually ends in /v1"):
        judge_at(endpoint.url, tmp_path).verdicts(STORIES[:1])
    assert not [*tmp_path.rglob("*.json")]


@pytest.mark.parametrize("key", [None, SECRET])
def test_the_key_is_sent_and_nowhere_else(endpoint, tmp_path, monkeypatch, key):
    for name in ("HF_TOKEN", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "sk-of-another-service")
    monkeypatch.setenv(KEY, key or "")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nothing on this machine is asked through a proxy
    judge = judge_at(endpoint.url, tmp_path)
    judge.verdicts(STORIES[:1])
    assert set(endpoint.keys) == {key and f"Bearer {key}"}
    assert SECRET not in repr(judge)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) == len(FEATURES)
    assert not [file for file in files if "sk-" in file.read_text()]


def test_a_redirect_takes_no_key_elsewhere(endpoint, tmp_path, monkeypatch, waits):
    monkeypatch.setenv(KEY, SECRET)
    sent = []
    with Endpoint() as other:
        monkeypatch.setattr(
            Handler, "do_GET", lambda handler: sent.append(handler.headers["Authorization"]), raising=False
        )
        answer = Handler.send_header
        location = {"Location": f"{other.url}/x"}
        monkeypatch.setattr(Handler, "send_header", lambda h, n, v: answer(h, n, location.get(n, v)))
        endpoint.faults = [302] * 9
        with pytest.raises(UsageError):
            judge_at(endpoint.url, tmp_path).check()
    assert endpoint.keys[0] == f"Bearer {SECRET}"
    assert set(sent) == {None}


@pytest.mark.parametrize(
    "url",
    ["", "127.0.0.1:8000/v1", "ftp://a/v1", "http://", "http://:8000", "http://a:x/v1", "http://a:99999", "http://[::1",
     "https://user:sk-x@a/v1", "https://a/v1?key=sk-x", "http://a b/v1", "https://ä/v1", "https://a/v1#x"],
)  # fmt: skip
def test_a_url_that_is_none_is_refused_and_not_repeated(tmp_path, url):
    with pytest.raises(UsageError, match="--judge_url must be") as raised:
        judge_at(url, tmp_path)
    assert "sk-x" not in str(raised.value)


@pytest.mark.parametrize(
    "url", ["http://[::1]:8000/v1", "http://localhost/v1/", "http://127.0.0.2:1", "https://a.b/v1"]
)
def test_a_key_goes_to_this_machine_or_encrypted(tmp_path, monkeypatch, url):
    monkeypatch.setenv(KEY, f" {SECRET}\n")
    assert judge_at(url, tmp_path).key == SECRET


@pytest.mark.parametrize("url", ["http://a.b/v1", "http://10.0.0.1:8000/v1", "http://localhost.evil.org"])
def test_a_key_never_goes_elsewhere_unencrypted(tmp_path, monkeypatch, url):
    assert judge_at(url, tmp_path).key is None
    monkeypatch.setenv(KEY, SECRET)
    with pytest.raises(UsageError, match="unencrypted") as raised:
        judge_at(url, tmp_path)
    assert SECRET not in str(raised.value)
    monkeypatch.setenv(KEY, f"{SECRET}\nx")
    with pytest.raises(UsageError, match=f"^{KEY} contains"):
        judge_at(url, tmp_path)


def test_unparseable_answers_are_counted_and_never_no(endpoint, tmp_path):
    records = list(generate_stories(60, seed=2))
    stories = [record["story"] for record in records]
    generations = [Generation("", "", "", record["story"], "", tuple(record["features"]), ()) for record in records]
    # Of dialogues it says nothing clear; a conflict it always sees.
    endpoint.answer = lambda feature, has: {"Dialogue": "Yes" if has else "Hm", "Conflict": "Yes"}.get(
        feature, "Yes" if has else "No"
    )
    verdicts = judge_at(endpoint.url, tmp_path).verdicts(stories)
    rows = {(row["slice"], row["metric"]): row for row in score_features(generations, verdicts=verdicts)}
    plain = {(row["slice"], row["metric"]): row for row in score_features(generations)}
    assert ("asked!=Dialogue", "has_Dialogue") not in rows
    assert ("asked!=Dialogue", "has_Dialogue") in plain
    assert rows["asked=Twist", "has_Twist"] == plain["asked=Twist", "has_Twist"]
    judged = {row["metric"]: row for row in score_judge(verdicts, detected(stories))}
    without = sum("Dialogue" not in record["features"] for record in records)
    assert judged["unparseable_Dialogue"]["estimate"] == without / 60
    assert judged["unparseable_Dialogue"]["n"] == 60
    assert judged["agreement_Dialogue"]["n"] == 60 - without
    assert judged["unparseable_Twist"]["estimate"] == 0
    assert judged["agreement_Twist"]["estimate"] == judged["kappa_Twist"]["estimate"] == 1
    assert judged["agreement_Twist"]["lower"] < 1
    assert judged["kappa_Conflict"]["estimate"] == 0
    wrong = [verdict if n % 5 else {**verdict, "Twist": not verdict["Twist"]} for n, verdict in enumerate(verdicts)]
    (kappa,) = [row for row in score_judge(wrong, detected(stories)) if row["metric"] == "kappa_Twist"]
    expected = cohen_kappa_score([v["Twist"] for v in wrong], [v["Twist"] for v in verdicts])
    assert kappa["estimate"] == pytest.approx(expected)
    assert kappa["lower"] < expected < kappa["upper"] < 1


@pytest.fixture(scope="module")
def data(tiny_data):
    flags = ["--corpus", "tiny", "--vocab_size", "400", "--data_cache_dir", str(tiny_data)]
    prepare_tinystories.main(
        ["pretokenize", *flags, "--dataset_name", "judged", "--adversarial_training", "features=Twist:1"]
    )
    return tiny_data


@pytest.fixture
def evaluate(data, tmp_path):
    tiny_model("llama", vocab_size=400, positions=1024).save_pretrained(tmp_path / "a")
    load_tokenizer(str(data / "tok400")).save_pretrained(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")

    def run(model, *more):
        flags = {"model_name_or_path": tmp_path / model, "dataset_name": "judged", "data_cache_dir": data,
                 "max_eval_samples": 2, "num_generations": 2, "max_new_tokens": 3}  # fmt: skip
        given = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
        return eval_checkpoint.main([*given, "--use_cpu", "--score_features", *more])

    return run


def test_the_command_names_the_judge_and_judges_are_not_mixed(endpoint, evaluate, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(KEY, SECRET)
    endpoint.answer = lambda feature, has: "Yes" if feature == "Twist" else "perhaps"
    judged = ("--judge_url", endpoint.url, "--judge_model", "m")
    rows = evaluate("a", *judged)
    assert [row["judge"] for row in rows if row.get("metric") == "has_Twist"] == ["m"]
    out = tmp_path / "a/eval/judged-validation"
    table = pd.read_csv(out / "feature_scores.csv").set_index("metric")
    assert table.loc["has_Twist", "estimate"] == 1
    assert "has_Dialogue" not in table.index
    assert table.loc["unparseable_Dialogue", "estimate"] == 1
    verdicts = pd.read_parquet(out / "generations.parquet")["verdicts"]
    assert [(verdict["Twist"], verdict["Dialogue"]) for verdict in verdicts] == [(True, None)] * 2
    shown = capsys.readouterr()
    assert "judged by m" in shown.out
    assert "2 of 2" in shown.out
    words = table.loc["words_used"]
    assert re.search(rf"words used +{words['estimate']:.3f} \[{words['lower']:.3f}, .* n={words['n']:.0f}", shown.out)
    assert SECRET not in shown.out + shown.err
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and SECRET.encode() in file.read_bytes()]

    runs = [Run(tmp_path / name, name, {}, {}, {}, None, None) for name in "ab"]
    asked = "eval/judged-validation/feature_scores.csv", ["slice=asked=Twist", "metric=has_Twist"]
    evaluate("b")
    with pytest.raises(UsageError, match="measured with different judge_"):
        read_measurement(runs, *asked)
    evaluate("b", *judged)
    assert [estimate.estimate for estimate in read_measurement(runs, *asked).estimates] == [1, 1]


def test_nothing_is_contacted_without_the_flag(endpoint, evaluate, tmp_path, monkeypatch, waits):
    def blocked(*_):
        raise OSError("the network is blocked")

    monkeypatch.setenv(KEY, SECRET)
    monkeypatch.setattr(socket.socket, "connect", blocked)
    monkeypatch.setattr(socket, "getaddrinfo", blocked)
    assert {row["judge"] for row in evaluate("a") if "judge" in row} == {"detectors"}
    with pytest.raises(SystemExit):  # the neighbour
        evaluate("b", "--judge_url", endpoint.url, "--judge_model", "m")
    assert not (tmp_path / "b" / "eval").exists()  # asked before anything is evaluated
    assert endpoint.questions == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--judge_model", "m", "--score_features"], "--judge_model m needs --judge_url"),
        (["--judge_url", "http://a/v1", "--judge_model", "m"], "--judge_url http://a/v1 needs --score_features"),
        (["--judge_url", "http://a/v1", "--score_features"], "needs --judge_model"),
    ],
)
def test_a_flag_without_the_other_is_one_line(capsys, flags, message):
    with pytest.raises(SystemExit) as left:
        eval_checkpoint.main(["--model_name_or_path", "x", *flags])
    assert left.value.code == 2
    assert message in capsys.readouterr().err


def test_scores_of_another_judge_do_not_stay(endpoint, evaluate, tmp_path, waits):
    evaluate("a")
    scores = tmp_path / "a/eval/judged-validation/feature_scores.csv"
    assert scores.exists()
    endpoint.faults = [None, 401]
    with pytest.raises(SystemExit):
        evaluate("a", "--judge_url", endpoint.url, "--judge_model", "another")
    assert not scores.exists()
