"""The command `report`, end to end on runs written by hand: the terminal, the page, the tables, what it refuses."""

import csv
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fake_trials import TRIAL

from lm_trials.trials.registration import register
from lm_trials.trials.trial_file import read_trial
from lm_trials.trials.trial_report import main
from lm_trials.trials.trial_tables import covers

FILES = {"README.md", "index.html", "contrasts.csv", "values.csv", "curves.csv", "forest.png", "curves.png",
         "trial.yaml", "registration.json"}  # fmt: skip


@pytest.fixture
def file(make_trial, no_figures):
    """A finished, registered trial."""
    return make_trial(registered=True)


def table(name):
    with Path(f"results/t/{name}.csv").open(newline="") as lines:
        return list(csv.DictReader(lines))


class Page(HTMLParser):
    """The elements of a page that are opened and closed, what it loads, and its texts."""

    def __init__(self, text):
        super().__init__()
        self.open, self.loads, self.texts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta",):
            self.open.append(tag)
        self.loads += [value for name, value in attributes if name in ("src", "href", "xlink:href", "data")]

    def handle_startendtag(self, tag, attributes):
        self.loads += [value for name, value in attributes if name in ("src", "href", "xlink:href", "data")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_a_trial_from_the_command_to_the_files(make_trial, capsys):
    file = make_trial(registered=True)
    report = main([str(file)])
    assert report.verdict.word == "holds"
    shown = capsys.readouterr().out
    assert re.search(r"verdict +holds", shown)
    assert shown.index("verdict") < shown.index("contrasts") < shown.index("lm-trials reproduce results/t")
    written = {path.relative_to("results/t").as_posix() for path in Path("results/t").rglob("*") if path.is_file()}
    runs = {path.parent.name for path in Path("runs/t").glob("*/run.json")}
    assert written == FILES | {f"runs/{name}.json" for name in runs}
    assert sum((Path("results/t") / name).stat().st_size for name in written) < 500_000
    assert Path("results/t/trial.yaml").read_text() == TRIAL


def test_every_number_of_the_page_is_in_the_tables(file):
    report = main([str(file)])
    rows, values = table("contrasts"), table("values")
    primary = rows[0]
    test = report.findings[0].test
    assert float(primary["lower"]) == test.difference.lower  # to the last bit
    assert float(primary["lower_over_stories"]) > float(primary["lower"])
    assert (primary["root_seeds"], primary["stories"], primary["result"]) == ("4", "40", "holds")
    assert rows[2]["result"] == "no effect"  # of a control
    (line,) = re.findall(r"\| loss on other.*", Path("results/t/README.md").read_text())[:1]
    assert re.search(r"\[[-+.0-9]+, ([-+.0-9]+)\] nats per token \| above 0.05 \| above \1 \|", line)
    assert len(values) == 3 * 4 * 2
    own = [row for row in values if row["contrast"] == primary["contrast"]]
    never = {row["seed"]: float(row["value"]) for row in own if row["arm"] == "recover.never"}
    seen = {row["seed"]: float(row["value"]) for row in own if row["arm"] == "recover.seen"}
    for row in own:
        assert row["run"] == f"{row['arm'].replace('.', '-')}-s{row['seed']}"
        assert float(row["difference"]) == pytest.approx(never[row["seed"]] - seen[row["seed"]])
    assert float(primary["estimate"]) == pytest.approx(sum(float(row["difference"]) for row in own) / 8)
    text = Path("results/t/README.md").read_text()
    for row in values:
        assert f"`{row['run']}`" in text
        assert f"{float(row['value']):.6g} {row['unit']}" in text
    for run in Path("runs/t").glob("*-s*"):
        assert f"--run_name {run.name} " in text  # its command


def test_the_page_loads_nothing_and_is_the_same_each_time(file):
    main([str(file)])
    text = Path("results/t/index.html").read_text()
    page = Page(text)
    assert page.open == []
    assert all(each.startswith("#") for each in page.loads)
    assert text.count("<svg") == 2
    assert "prefers-color-scheme: dark" in text
    assert "Fine-tuning hides a feature." in page.texts
    assert "Verdict: holds" in page.texts
    before = {path: path.read_bytes() for path in Path("results/t").rglob("*") if path.is_file()}
    main([str(file)])
    assert {path: path.read_bytes() for path in before} == before


def test_changes_after_the_registration_are_listed(file, capsys):
    changed = TRIAL.replace("margin: 0.05}\nsecondary", "margin: 0.01}\nsecondary")
    file.write_text(changed.replace("[0, 1, 2, 3]", "[0, 1, 2]"))
    report = main([str(file)])
    assert len(report.deviations) == 2
    assert "test.seeds: [0, 1, 2, 3], now [0, 1, 2]" in report.deviations[0]
    page = Path("results/t/README.md").read_text()
    assert "holds, with deviations from the registration" in page
    assert json.loads(Path("results/t/registration.json").read_text())["digest"] in page
    assert "margin: 0.05, now 0.01" in report.deviations[1]
    assert "margin: 0.05, now 0.01" in Path("results/t/README.md").read_text()
    assert "margin: 0.05, now 0.01" in " ".join(capsys.readouterr().out.split())
    assert json.loads(Path("results/t/registration.json").read_text())["text"] == TRIAL


@pytest.mark.parametrize(("base", "said"), [("org/model", True), ("runs/geographer-s{seed}", False)])
def test_one_base_of_all_root_seeds_is_said(file, base, said):
    report = main([str(file)])
    first = report.trial.stages["pretrain"]
    flags = {arm: {**of, "model_name_or_path": base} for arm, of in first.flags.items()}
    trial = replace(report.trial, stages={**report.trial.stages, "pretrain": replace(first, flags=flags)})
    assert ("All root seeds start from org/model" in covers(replace(report, trial=trial))) == said
    assert "start from" not in covers(report)


def test_a_trial_that_was_registered_after_its_runs_says_so(file):
    Path("runs/t/registration.json").unlink()
    register(read_trial(file), Path("runs/t"))
    (line,) = main([str(file)]).deviations
    assert line == "24 jobs were finished before the registration, pretrain-seen-s0 for example"


def test_a_trial_that_was_not_registered_says_so(file):
    Path("runs/t/registration.json").unlink()
    (line,) = main([str(file)]).deviations
    assert line == "the trial was not registered before its first run: its runs have no registration.json"


def test_an_unfinished_trial_is_incomplete_and_names_its_jobs(make_trial, no_figures, capsys):
    file = make_trial(skip=["recover-seen-s3", "recover-seen-s3/evaluate-1"])
    report = main([str(file)])
    assert report.verdict.word == "incomplete"
    assert report.missing == ["recover-seen-s3", "recover-seen-s3/evaluate-1"]
    assert "2 jobs are not finished: recover-seen-s3" in capsys.readouterr().out
    assert "`recover-seen-s3/evaluate-1`" in Path("results/t/README.md").read_text()


def test_an_undecided_trial_says_what_would_decide_it(make_trial, no_figures):
    report = main([str(make_trial(effects={("recovery", "never"): 0.53}))])
    assert report.verdict.word == "undecided"
    assert re.search(
        "these 40 stories do not decide it|about [0-9,]+ root seeds would decide it", report.verdict.reason
    )


@pytest.mark.parametrize(
    ("prepare", "more", "text"),
    [
        (lambda: Path("results/t").mkdir(parents=True) or Path("results/t/notes.txt").touch(), [], "has other files"),
        (lambda: None, ["--runs_dir", "elsewhere"], "elsewhere/t has no runs of this trial; run it: lm-trials run"),
        (lambda: None, ["--hub_repo_id", "a/b"], "--hub_repo_id a/b needs --push_to_hub"),
        (lambda: None, ["--pilot", "0"], "--pilot 0 is a registered seed"),
    ],
)
def test_a_mistake_gets_one_line_and_nothing_is_written(file, capsys, prepare, more, text):
    prepare()
    before = sorted(Path("results").rglob("*"))
    with pytest.raises(SystemExit) as left:
        main([str(file), *more])
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert text in line
    assert sorted(Path("results").rglob("*")) == before


def test_results_of_another_trial_are_not_overwritten(file, make_trial, capsys):
    main([str(file)])
    other = make_trial(name="u", text=TRIAL.replace("max_steps: 100", "max_steps: 99"))
    with pytest.raises(SystemExit):
        main([str(other), "--output_dir", "results/t"])
    assert "--output_dir results/t has the results of another trial" in capsys.readouterr().err
    assert main([str(other)]).verdict.word == "holds"
