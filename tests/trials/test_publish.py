"""Publishing the results of a trial: with the unmodified client, to a Hub on loopback."""

import csv
import io
from pathlib import Path

import pytest
import yaml
from hub_stand_in import HubStandIn, Owner
from huggingface_hub import constants

from lm_trials.console import UsageError
from lm_trials.trials import publish as publish_module
from lm_trials.trials.trial_report import main

pytestmark = pytest.mark.usefixtures("no_figures")
TOKEN, READER = "hf_TheTokenThatNobodyMayEverSee0123456", "hf_ThisOneMayOnlyRead"


@pytest.fixture
def hub(monkeypatch):
    with HubStandIn({TOKEN: Owner(), READER: Owner(role="read")}) as started:
        for name, value in (("ENDPOINT", started.url), ("HF_HUB_OFFLINE", False), ("HF_HUB_DISABLE_XET", True)):
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield started
        assert started.unknown == []


# The client's own use of its HTTP library.
@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_results_become_a_data_set_without_the_token(make_trial, hub, capsys):
    file = make_trial()
    main([str(file), "--push_to_hub", "--hub_private_repo"])
    files = hub.files("tester/t")
    assert hub.repositories["tester/t"].private
    written = {path.relative_to("results/t").as_posix() for path in Path("results/t").rglob("*") if path.is_file()}
    assert files.keys() - {".gitattributes"} == written
    assert all(files[name] == (Path("results/t") / name).read_bytes() for name in written - {"README.md"})
    _, header, text = files["README.md"].decode().split("---\n", 2)
    assert text.lstrip() == Path("results/t/README.md").read_text()
    about = yaml.safe_load(header)
    assert about["license"] == "mit"
    assert [each["config_name"] for each in about["configs"]] == ["contrasts", "values", "curves"]
    for each in about["configs"]:
        assert list(csv.DictReader(io.StringIO(files[each["data_files"]].decode())))
    assert any(path.startswith("/api/datasets/tester/t/") for _, path, _ in hub.requests)
    assert TOKEN.encode() not in hub.everything()
    shown = capsys.readouterr().out
    assert f"{hub.url}/datasets/tester/t" in shown
    assert TOKEN not in shown


@pytest.mark.parametrize(
    ("token", "more", "reason"),
    [
        (READER, ["--hub_repo_id", "tester/other"], "tester/other was not published"),
        (TOKEN, ["--hub_repo_id", "a b"], "--hub_repo_id a b is not a repository name"),
        ("", [], "no token"),
    ],
)
def test_a_push_that_cannot_work_gets_one_line(make_trial, hub, monkeypatch, capsys, token, more, reason):
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "nowhere")
    with pytest.raises(SystemExit) as left:
        main([str(make_trial()), "--push_to_hub", *more])
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert reason in line
    assert not token or token not in line
    assert Path("results/t/README.md").is_file()
    assert not hub.repositories


def test_offline_nothing_is_asked(make_trial, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match="HF_HUB_OFFLINE is set"):
        publish_module.publish(Path("results/t"), None, "t")
