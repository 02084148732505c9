"""The Hub: when a run is pushed as `--push_to_hub` asks, with what token, and what happens where the Hub fails.

    check_push(args)         before anything is loaded: is there a token, and a Hub that takes it
    open_repository(args)    before the run's folder is written: may the token write there
    push(trainer)            at the end; push_finished(args) for a run that came to its end before

Trainer uploads whole folders, pickles the token into them, and says nothing where an upload fails.  What is uploaded
here is `training.public_copy`, in one commit, so that the repository never holds half of an update.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from huggingface_hub import CommitInfo, HfApi, constants, get_session, get_token, is_offline_mode
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, validate_repo_id
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import HubStrategy
from transformers.utils.hub import PushInProgress

from lm_trials.console import UsageError, note, show_facts
from lm_trials.models.reference import checkpoints
from lm_trials.stories.shards import first_line
from lm_trials.training.public_copy import local_base, public_copy, remove_copies, remove_copy

# A Hub that says nothing for so long is not there; the client itself would wait for ever.
TIMEOUT = 10.0  # seconds
LATER = "or leave --push_to_hub away: the same command with it pushes a finished run and trains nothing"
# The errors of the HTTP client and OSError (no network, a Hub that is down), and what the client raises by itself.
TROUBLE = (*HfHubHTTPError.__bases__, ValueError, RuntimeError)


@dataclass(frozen=True)
class Destination:
    """Where a push goes, and by whose leave."""

    repository: str
    revision: str | None
    token: str | None = field(repr=False)

    @classmethod
    def of(cls, args: TrainingArguments, repository: str) -> Destination:
        """Take the token now: while a background push is under way, a save takes it out of the arguments."""
        return cls(repository, args.hub_revision, args.hub_token)

    def upload(self, copy: Path, message: str) -> CommitInfo:
        """Put a public copy there in one commit, and remove it."""
        try:
            return HfApi().upload_folder(
                repo_id=self.repository,
                folder_path=copy,
                commit_message=message,
                token=self.token,
                revision=self.revision,
            )
        finally:
            remove_copy(copy)

    def try_upload(self, copy: Path, message: str) -> None:
        """Upload and go on whatever comes: nobody looks at what a thread raises."""
        try:
            self.upload(copy, message)
        except Exception as error:
            self.say_unpushed(error)

    def say_unpushed(self, error: Exception) -> None:
        """Say that a push during training failed."""
        reason = _reason(error, self.token)
        note(f"warning: {self.repository} was not pushed ({reason}); the training goes on and is pushed at its end")


class HubPush(Trainer):
    """A Trainer that pushes what is public and keeps its token to itself; to be mixed into others."""

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Save without the token: Trainer pickles its arguments into each folder that it saves."""
        token, self.args.hub_token = self.args.hub_token, None
        try:
            super()._save(output_dir, state_dict)
        finally:
            self.args.hub_token = token

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save, and push nothing: a run is pushed when it has been evaluated and is whole."""
        super().save_model(output_dir, _internal_call=True)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Open the repository, in the main process; Trainer calls this when it is made."""
        if self.is_world_process_zero():
            self.hub_model_id = _open(self.args)
            self.push_in_progress = None
            self._uploads = HfApi()  # its background jobs run one after the other

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push the model of a whole checkpoint in the background, and all of it where `--hub_strategy` says so.

        While a push is under way the next one is left out, unless `--hub_always_push` is given; the one at the end
        makes up for it.
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
            destination.say_unpushed(error)
            return
        message = f"Training in progress, step {self.state.global_step}"
        job = self._uploads.run_as_future(destination.try_upload, copy, message)
        self.push_in_progress = PushInProgress([*(self.push_in_progress.jobs if busy else []), job])

    def push_to_hub(self, commit_message: str = "End of training", **card: Any) -> CommitInfo | None:
        """Save and push, as Trainer does, what is public; `card` are arguments of `create_model_card`."""
        if self.hub_model_id is None:
            self.init_hf_repo()
        self.save_model()
        return self.push_folder(commit_message, **card)

    def push_folder(self, message: str = "End of training", **card: Any) -> CommitInfo | None:
        """Push the run's folder as it is, with a model card, after what is under way; see `push`."""
        if not self.is_world_process_zero():
            return None
        self._finish_current_push()
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.args.do_train or not (Path(self.args.output_dir) / "README.md").exists():
            self.create_model_card(model_name=self.hub_model_id.split("/")[-1], **card)
        return push_run(self.args, self.hub_model_id, message)


def check_push(args: TrainingArguments) -> None:
    """Check that a push could work, before anything is loaded; nothing is written, here or there.

    Every process calls it.

    Raises:
        UsageError: with no token, or one that the Hub refuses or lets only read; without a network.
    """
    if args.push_to_hub:
        _by_main_process(args, lambda: _check(args))


def open_repository(args: TrainingArguments) -> str | None:
    """Create the repository, and the branch of `--hub_revision`, where there is none, and ask whether we may write.

    Every process calls it.

    Returns:
        The repository's whole name; None without `--push_to_hub`.

    Raises:
        UsageError: if we may not.
    """
    return _by_main_process(args, lambda: _open(args)) if args.push_to_hub else None


def push(trainer: HubPush) -> CommitInfo | None:
    """Push a run at its end, after what is under way; nothing without `--push_to_hub`, nor in other processes.

    Raises:
        SystemExit: with 1 where the upload fails; the run is whole here.
    """
    return trainer.push_folder() if trainer.args.push_to_hub else None


def push_finished(args: TrainingArguments) -> None:
    """Push a run that came to its end before, as its folder has it; nothing without `--push_to_hub`.

    Every process calls it.

    Raises:
        UsageError, SystemExit: as `open_repository` and `push`.
    """
    repository = open_repository(args)
    if repository is not None and args.process_index == 0:
        push_run(args, repository)


def push_run(args: TrainingArguments, repository: str, message: str = "End of training") -> CommitInfo:
    """Push a run as its folder has it, with the checkpoints that `--hub_strategy` asks for, and wait for it.

    Raises:
        SystemExit: with 1 where it fails; the run is whole here.
    """
    run, destination = Path(args.output_dir), Destination.of(args, repository)
    remove_copies(run)
    try:
        commit = destination.upload(public_copy(run, run, _to_resume(args, checkpoints(run))), message)
    except TROUBLE as error:
        reason = _reason(error, args.hub_token)
        note(f"error: {repository} was not pushed ({reason}); {run} is whole, and the same command pushes it")
        raise SystemExit(1) from None
    name = f"{repository}@{args.hub_revision}" if args.hub_revision else repository
    facts = {"model": name, "commit": commit.oid, "page": f"{constants.ENDPOINT}/{repository}"}
    if base := local_base(run):
        facts["its base"] = f"{base} is a folder here; whoever loads the adapter needs it, so push that too"
    show_facts("pushed", facts)
    return commit


def _to_resume(args: TrainingArguments, whole: list[Path]) -> dict[str, Path]:
    """Return the checkpoints that are published with their optimizer, by the names that Trainer gives them."""
    if args.hub_strategy == HubStrategy.ALL_CHECKPOINTS:
        return {checkpoint.name: checkpoint for checkpoint in whole}
    if args.hub_strategy == HubStrategy.CHECKPOINT and whole:
        return {"last-checkpoint": whole[-1]}
    return {}


def _by_main_process(args: TrainingArguments, action: Callable[[], Any]) -> Any:
    """Let the main process do something; what it returns, or its UsageError, is that of all."""
    if args.world_size == 1:
        return action()
    answer = [None, None]
    if args.process_index == 0:
        try:
            answer = [action(), None]
        except UsageError as error:
            answer = [None, str(error)]
    result, mistake = broadcast_object_list(answer)
    if mistake is not None:
        raise UsageError(mistake)
    return result


def _check(args: TrainingArguments) -> None:
    if args.hub_model_id is not None:
        _check_name(f"--hub_model_id {args.hub_model_id}", args.hub_model_id)
    if is_offline_mode():
        raise UsageError(f"--push_to_hub True, but HF_HUB_OFFLINE is set; unset it, {LATER}")
    token = args.hub_token or get_token()
    if not token:
        raise UsageError(
            f"--push_to_hub True needs a token of {constants.ENDPOINT} that may write, and there is none; run `hf auth "
            f"login` or set HF_TOKEN, {LATER}"
        )
    if not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError("the token of the Hub holds characters that none has; copy it again")
    if any(token in word for word in sys.argv):
        note("note: everyone on this machine can read a token in a command; `hf auth login` or HF_TOKEN hide it")
    _check_owner(args, _owner(args, token))


def _check_name(shown: str, name: str) -> None:
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise UsageError(f"{shown} is no name of a repository; give OWNER/NAME of letters, digits, - _ and .") from None


def _owner(args: TrainingArguments, token: str) -> dict[str, Any]:
    """Return what the Hub says of the token's owner.  As `HfApi.whoami`, which takes no time limit."""
    try:
        answer = get_session().get(
            f"{constants.ENDPOINT}/api/whoami-v2", headers=build_hf_headers(token=token), timeout=TIMEOUT
        )
        hf_raise_for_status(answer)
        owner = answer.json()
        if not isinstance(owner, dict) or "name" not in owner:
            raise ValueError("it answers as no Hub does")
        return owner
    except TROUBLE as error:
        if _status(error) in (401, 403):
            raise UsageError(
                f"{constants.ENDPOINT} refuses the token ({_whence(args)}); run `hf auth login` with a valid one that "
                f"may write, {LATER}"
            ) from None
        raise UsageError(
            f"--push_to_hub True, but {constants.ENDPOINT} cannot be reached ({_reason(error, token)}); look at the "
            f"network and HF_ENDPOINT, {LATER}"
        ) from None


def _whence(args: TrainingArguments) -> str:
    return "--hub_token" if args.hub_token else "HF_TOKEN, or that of `hf auth login`"


def _check_owner(args: TrainingArguments, owner: dict[str, Any]) -> None:
    access = (owner.get("auth") or {}).get("accessToken") or {}
    if access.get("role") == "read":
        raise UsageError(
            f"the token of {owner['name']} ({_whence(args)}) may only read; make one that may write at "
            f"{constants.ENDPOINT}/settings/tokens, {LATER}"
        )
    namespace, slash, _ = (args.hub_model_id or "").partition("/")
    owners = [owner["name"], *(organisation.get("name") for organisation in owner.get("orgs") or [])]
    if slash and namespace not in owners:
        raise UsageError(
            f"--hub_model_id {args.hub_model_id}: the token is of {owner['name']}, who may not write for {namespace}; "
            f"give one of {', '.join(map(str, owners))} as OWNER/NAME"
        )


def _open(args: TrainingArguments) -> str:
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
        # What every upload asks first, and asks only: the Hub says here already if the token may not write.
        answer = get_session().post(
            f"{constants.ENDPOINT}/api/models/{repository}/preupload/{(branch or 'main').replace('/', '%2F')}",
            headers=build_hf_headers(token=token),
            json={"files": [{"path": "config.json", "sample": "", "size": 0}]},
            timeout=TIMEOUT,
        )
        hf_raise_for_status(answer)
    except TROUBLE as error:
        raise UsageError(
            f"--push_to_hub True, but {name} cannot be written on {constants.ENDPOINT} ({_reason(error, token)}); give "
            f"a token that may, another --hub_model_id, {LATER}"
        ) from None
    args.hub_model_id = repository
    return repository


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _reason(error: Exception, token: str | None) -> str:
    """Return what went wrong in one line in which no token stands."""
    status = _status(error)
    said = (getattr(error, "server_message", None) or "").strip()
    text = f"status {status}{f', {said}' if said else ''}" if status else first_line(error) or type(error).__name__
    for secret in filter(None, (token, get_token())):
        text = text.replace(secret, "<HUB_TOKEN>")
    return text
