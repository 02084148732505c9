"""Pushing runs to the Hub (`--push_to_hub`).

    check_push(args)         before anything is loaded: checks the token and the network
    open_repository(args)    before the run's folder is written: checks that the token may write
    push(trainer)            at the end; push_finished(args) for a run that was already finished

Trainer uploads whole folders, pickles the token into them, and hides failed uploads.  Here `training.public_copy`
selects the files, and each push is one commit.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from huggingface_hub import CommitInfo, HfApi, constants, get_session, get_token, is_offline_mode
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, validate_repo_id
from transformers import Trainer
from transformers.trainer_utils import HubStrategy
from transformers.utils.hub import PushInProgress

from lm_trials.console import UsageError, note, show_facts
from lm_trials.hub_errors import hub_reason, network_errors
from lm_trials.models.reference import checkpoints
from lm_trials.training.public_copy import local_base, public_copy, remove_copies
from lm_trials.training.run_arguments import RunArguments

TIMEOUT = 10.0  # seconds; the Hub's client by itself waits forever
LATER = "or remove --push_to_hub and push the finished run later with the same command"
TROUBLE: tuple[Any, ...] = (*network_errors(), ValueError, RuntimeError)


@dataclass(frozen=True)
class Destination:
    """A repository with the token to push to it."""

    repository: str
    revision: str | None
    token: str | None = field(repr=False)

    @classmethod
    def of(cls, args: RunArguments, repository: str) -> Destination:
        """Copy the token, because saves remove it from the arguments while a background push runs."""
        return cls(repository, args.hub_revision, args.hub_token)

    def upload(self, copy: Path, message: str) -> CommitInfo:
        """Upload a public copy in one commit, and remove the copy."""
        where: dict[str, Any] = {"repo_id": self.repository, "revision": self.revision, "token": self.token}
        try:
            return HfApi().upload_folder(folder_path=copy, commit_message=message, **where)
        finally:
            shutil.rmtree(copy, ignore_errors=True)

    def try_upload(self, copy: Path, message: str) -> None:
        """Upload in a thread, whose exceptions would be lost."""
        try:
            self.upload(copy, message)
        except Exception as error:
            self.warn(error)

    def warn(self, error: Exception) -> None:
        """Warn that a push during training failed."""
        reason = hub_reason(error, self.token)
        note(f"warning: {self.repository} was not pushed ({reason}); the training continues and is pushed at its end")


class HubPush(Trainer):
    """A mixin for Trainers that pushes public files only and never saves the token."""

    # Trainer's annotations allow None, or another class, where a running Trainer has these.
    args: RunArguments
    model: Any
    hub_model_id: Any
    push_in_progress: Any

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Save without the token: Trainer pickles its arguments into each saved folder."""
        token, self.args.hub_token = self.args.hub_token, None
        try:
            super()._save(output_dir, state_dict)
        finally:
            self.args.hub_token = token

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save without pushing: a run is pushed after its final evaluation."""
        super().save_model(output_dir, _internal_call=True)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Open the repository, in the main process; Trainer's `__init__` calls this."""
        if self.is_world_process_zero():
            self.hub_model_id = _open(self.args)
            self.push_in_progress = None
            self._uploads = HfApi()  # runs its background jobs one after the other

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push a checkpoint's model in the background, with its optimizer if `--hub_strategy` asks for it.

        Skipped while another push is running, unless `--hub_always_push` is given.
        """
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if busy and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        run, checkpoint = Path(self.args.output_dir), Path(checkpoint_folder)
        destination = Destination.of(self.args, self.hub_model_id)
        try:
            copy = public_copy(run, checkpoint, _to_resume(self.args, [checkpoint]))
        except TROUBLE as error:
            destination.warn(error)
            return
        message = f"Training in progress, step {self.state.global_step}"
        job = self._uploads.run_as_future(destination.try_upload, copy, message)
        jobs: Any = [*(self.push_in_progress.jobs if busy else []), job]  # annotated as one job
        self.push_in_progress = PushInProgress(jobs)

    def push_to_hub(  # type: ignore[override]  # Trainer's `blocking` and `token` have no use here
        self, commit_message: str = "End of training", *, save: bool = True, **card: Any
    ) -> CommitInfo | None:
        """Push the run's folder, saved first, with a model card; `card` are arguments of `create_model_card`."""
        if self.hub_model_id is None:
            self.init_hf_repo()
        if save:
            self.save_model()
        if not self.is_world_process_zero():
            return None
        self._finish_current_push()
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.args.do_train or not (Path(self.args.output_dir) / "README.md").exists():
            self.create_model_card(model_name=self.hub_model_id.split("/")[-1], **card)
        return push_run(self.args, self.hub_model_id, commit_message)


def open_repository(args: RunArguments) -> str | None:
    """Create the repository and the branch of `--hub_revision` where missing, and return its full name.

    Every process calls it; None without `--push_to_hub`.

    Raises:
        UsageError: if the token may not write there.
    """
    return _in_main_process(_open)(args)


def push(trainer: HubPush) -> CommitInfo | None:
    """Push a run at its end, if `--push_to_hub`, as `push_run` does."""
    return trainer.push_to_hub(save=False) if trainer.args.push_to_hub else None


def push_finished(args: RunArguments) -> None:
    """Push a run that was finished before, if `--push_to_hub`, as `push_run` does.  Every process calls it."""
    repository = open_repository(args)
    if repository is not None and args.process_index == 0:
        push_run(args, repository)


def push_run(args: RunArguments, repository: str, message: str = "End of training") -> CommitInfo:
    """Push a run's folder with the checkpoints of `--hub_strategy`, and wait for the upload.

    Raises:
        SystemExit: with 1 if it fails; the local run is complete.
    """
    run, destination = Path(args.output_dir), Destination.of(args, repository)
    remove_copies(run)
    try:
        commit = destination.upload(public_copy(run, run, _to_resume(args, checkpoints(run))), message)
    except TROUBLE as error:
        reason = hub_reason(error, args.hub_token)
        note(f"error: {repository} was not pushed ({reason}); {run} is complete, and the same command pushes it")
        raise SystemExit(1) from None
    name = f"{repository}@{args.hub_revision}" if args.hub_revision else repository
    facts = {"model": name, "commit": commit.oid, "page": f"{constants.ENDPOINT}/{repository}"}
    if base := local_base(run):
        facts["base model"] = f"{base} is a local folder; push it too, because the adapter cannot be loaded without it"
    show_facts("pushed", facts)
    return commit


def _to_resume(args: RunArguments, complete: list[Path]) -> dict[str, Path]:
    """Return the checkpoints to publish with their optimizer, by Trainer's names for them."""
    if args.hub_strategy == HubStrategy.ALL_CHECKPOINTS:
        return {checkpoint.name: checkpoint for checkpoint in complete}
    if args.hub_strategy == HubStrategy.CHECKPOINT and complete:
        return {"last-checkpoint": complete[-1]}
    return {}


def _in_main_process(action: Callable[[RunArguments], Any]) -> Callable[[RunArguments], Any]:
    """Let the main process act, if `--push_to_hub`; every process returns its result or raises its UsageError."""

    @wraps(action)
    def act(args: RunArguments) -> Any:
        if not args.push_to_hub or args.world_size == 1:
            return action(args) if args.push_to_hub else None
        answer: list[Any] = [None, None]
        if args.process_index == 0:
            try:
                answer = [action(args), None]
            except UsageError as error:
                answer = [None, str(error)]
        result, mistake = broadcast_object_list(answer)
        if mistake is not None:
            raise UsageError(mistake)
        return result

    return act


@_in_main_process
def check_push(args: RunArguments) -> None:
    """Check that a push can work, before anything is loaded; writes nothing.  Every process calls it.

    Raises:
        UsageError: for no token, a token that the Hub refuses or that may only read, or no network.
    """
    if args.hub_model_id is not None:
        _check_name(f"--hub_model_id {args.hub_model_id}", args.hub_model_id)
    if is_offline_mode():
        raise UsageError(f"--push_to_hub True: HF_HUB_OFFLINE is set; unset it, {LATER}")
    token = args.hub_token or get_token()
    if not token:
        raise UsageError(
            f"--push_to_hub True: there is no token for {constants.ENDPOINT}; run `hf auth login` or set HF_TOKEN, "
            f"{LATER}"
        )
    if not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError(f"--push_to_hub True: the token ({_source(args)}) has invalid characters; copy it again")
    if any(token in word for word in sys.argv):
        note("note: other users can read --hub_token in the process list; use `hf auth login` or HF_TOKEN")
    owner = _owner(args, token)
    access = (owner.get("auth") or {}).get("accessToken") or {}
    if access.get("role") == "read":
        raise UsageError(
            f"--push_to_hub True: the token of {owner['name']} ({_source(args)}) may only read; create a write token "
            f"at {constants.ENDPOINT}/settings/tokens, {LATER}"
        )
    namespace, slash, _ = (args.hub_model_id or "").partition("/")
    owners = [owner["name"], *(organisation.get("name") for organisation in owner.get("orgs") or [])]
    if slash and namespace not in owners:
        raise UsageError(
            f"--hub_model_id {args.hub_model_id}: {owner['name']}, the token's owner, may not write to {namespace}; "
            f"valid owners: {', '.join(map(str, owners))}"
        )


def _check_name(shown: str, name: str) -> None:
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise UsageError(f"{shown} is not a repository name; give OWNER/NAME of letters, digits, - _ and .") from None


def _owner(args: RunArguments, token: str | None) -> dict[str, Any]:
    """Return the token's owner, as `HfApi.whoami` does, but with a timeout."""
    try:
        answer = get_session().get(
            f"{constants.ENDPOINT}/api/whoami-v2", headers=build_hf_headers(token=token), timeout=TIMEOUT
        )
        hf_raise_for_status(answer)
        owner = answer.json()
        if not isinstance(owner, dict) or "name" not in owner:
            raise ValueError("it is not a Hub")
        return owner
    except TROUBLE as error:
        if getattr(getattr(error, "response", None), "status_code", None) in (401, 403):
            raise UsageError(
                f"--push_to_hub True: {constants.ENDPOINT} refuses the token ({_source(args)}); run `hf auth login` "
                f"with a valid write token, {LATER}"
            ) from None
        raise UsageError(
            f"--push_to_hub True: {constants.ENDPOINT} cannot be reached ({hub_reason(error, token)}); check the "
            f"network and HF_ENDPOINT, {LATER}"
        ) from None


def _source(args: RunArguments) -> str:
    return "--hub_token" if args.hub_token else "HF_TOKEN or `hf auth login`"


def _open(args: RunArguments) -> str:
    name = args.hub_model_id or Path(args.output_dir).absolute().name
    if args.hub_model_id is None:
        _check_name(f"--output_dir {args.output_dir}: {name}", name)
    api, token, branch = HfApi(), args.hub_token or get_token(), args.hub_revision
    if "/" not in name:
        name = f"{_owner(args, token)['name']}/{name}"
    try:
        repository = api.create_repo(name, token=token, private=args.hub_private_repo, exist_ok=True).repo_id
        if branch and not branch.startswith("refs/"):
            api.create_branch(repository, branch=branch, token=token, exist_ok=True)
        # The first request of every upload, which writes nothing; the Hub refuses it if the token may not write.
        answer = get_session().post(
            f"{constants.ENDPOINT}/api/models/{repository}/preupload/{(branch or 'main').replace('/', '%2F')}",
            headers=build_hf_headers(token=token),
            json={"files": [{"path": "config.json", "sample": "", "size": 0}]},
            timeout=TIMEOUT,
        )
        hf_raise_for_status(answer)
    except TROUBLE as error:
        raise UsageError(
            f"--push_to_hub True: {name} on {constants.ENDPOINT} is not writable ({hub_reason(error, token)}); give "
            f"another token or --hub_model_id, {LATER}"
        ) from None
    args.hub_model_id = repository
    return repository
