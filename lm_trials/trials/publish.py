"""Publishing the results of a trial as a data set on the Hub (`lm-trials report --push_to_hub`)."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from lm_trials.console import UsageError, show_facts
from lm_trials.hub_errors import hub_reason, network_errors
from lm_trials.trials.trial import Trial

TABLES = ("contrasts", "values", "curves")


def publish(folder: Path, trial: Trial, name: str, private: bool = False) -> str:
    """Upload a folder of results in one commit, its README with a data set card's header; returns the repository.

    Args:
        name: OWNER/NAME, or NAME of the token's owner.

    Raises:
        UsageError: for no token, a wrong name, or a Hub that cannot be reached or refuses; without the token.
    """
    from huggingface_hub import HfApi, constants, get_token, is_offline_mode
    from huggingface_hub.errors import HFValidationError

    kept = f"{folder} is complete, and the same command publishes it"
    if is_offline_mode():
        raise UsageError(f"--push_to_hub True: HF_HUB_OFFLINE is set; unset it ({kept})")
    token = get_token()
    if not token:
        raise UsageError(
            f"--push_to_hub True: no token for {constants.ENDPOINT}; run `hf auth login` or set HF_TOKEN ({kept})"
        )
    api = HfApi(constants.ENDPOINT, token=token)
    trouble: tuple[Any, ...] = (*network_errors(), ValueError, RuntimeError)
    where: dict[str, Any] = {"repo_type": "dataset"}
    copy = Path(tempfile.mkdtemp())
    try:
        repository = api.create_repo(name, private=private, exist_ok=True, **where).repo_id
        shutil.copytree(folder, copy, dirs_exist_ok=True)
        card = copy / "README.md"
        card.write_text(f"{card_header(folder, trial.name)}\n{card.read_text(encoding='utf-8')}", encoding="utf-8")
        commit = api.upload_folder(
            repo_id=repository, folder_path=copy, commit_message=f"Results of {trial.name}", **where
        )
    except HFValidationError:
        raise UsageError(
            f"--hub_repo_id {name} is not a repository name; give OWNER/NAME of letters and digits"
        ) from None
    except trouble as error:
        raise UsageError(f"--push_to_hub True: {name} was not published ({hub_reason(error, token)}); {kept}") from None
    finally:
        shutil.rmtree(copy, ignore_errors=True)
    show_facts(
        "published",
        {"data set": repository, "commit": commit.oid, "page": f"{constants.ENDPOINT}/datasets/{repository}"},
    )
    return str(repository)


def card_header(folder: Path, name: str) -> str:
    """Return the header of a data set's card: its license and tags, and each table as a configuration.

    >>> import tempfile
    >>> print(card_header(Path(tempfile.mkdtemp()), "t"))
    ---
    license: mit
    pretty_name: t
    tags:
    - lm-trials
    - controlled-experiment
    configs: []
    ---
    <BLANKLINE>
    """
    import yaml

    tables = [name for name in TABLES if (folder / f"{name}.csv").is_file()]
    configs = [{"config_name": table, "data_files": f"{table}.csv"} for table in tables]
    tags = ["lm-trials", "controlled-experiment"]
    about = {"license": "mit", "pretty_name": name, "tags": tags, "configs": configs}
    return f"---\n{yaml.safe_dump(about, sort_keys=False)}---\n"
