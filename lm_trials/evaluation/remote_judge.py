"""A language model behind an OpenAI-compatible endpoint as the judge of a story's features.

It is asked the yes/no question of tinystories-wrappers, `Does the story have a twist?` (arXiv 2311.12786), and its like
for the other features, with two examples at temperature 0.  Its examples were not published; these are our own.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from ipaddress import ip_address
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import OpenerDirector, ProxyHandler, Request, build_opener

from lm_trials.console import UsageError, note, progress
from lm_trials.evaluation.flags import EvaluationArguments
from lm_trials.files import read_object, write_json
from lm_trials.stories.features import FEATURES

# Of its own: a key for another service, as in OPENAI_API_KEY or HF_TOKEN, must not go to any URL that is given.
KEY = "LM_TRIALS_JUDGE_KEY"
FOLDER = "judge_answers"
AT_ONCE = 8  # requests; not tuned
TIMEOUT = 60.0  # seconds
WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before each further attempt
LONGEST_WAIT = 60.0  # of those that a server asks for with Retry-After
BUSY = {408, 429, 500, 502, 503, 504}
ANSWER_TOKENS = 16  # a longer answer is none of Yes and No
ADVICE = {
    401: f"set the environment variable {KEY} to a valid key",
    403: f"set the environment variable {KEY} to a key that may use the model",
    404: "check the URL, which usually ends in /v1, and --judge_model",
}

PLAIN = "Tom went to the park with his mom. He played on the swing and ate a red apple. Then they walked home to sleep."
# For each feature: how the question names it, and a story that has it; `PLAIN` has none.
EXAMPLES = {
    "Dialogue": (
        "a dialogue",
        'Sue saw a frog in the garden. "Hello, little frog!" said Sue. "Can you hop?" asked her brother. The frog '
        "hopped into the pond.",
    ),
    "Twist": (
        "a twist",
        "Each night Ben heard a noise under his bed. He was sure that it was a monster. One night he took a lamp and "
        "looked. It was not a monster at all; it was his cat with three tiny kittens!",
    ),
    "BadEnding": (
        "a bad ending",
        "Lily had a yellow balloon. She held it tight, but the wind was strong. The balloon flew away and did not come "
        "back. Lily walked home in tears.",
    ),
    "MoralValue": (
        "a moral value",
        "Max did not want to share his blocks, so he played alone. Then he gave half of them to Ann, and they built a "
        "big tower. Max learned that it is good to share.",
    ),
    "Foreshadowing": (
        "foreshadowing",
        "Anna went to the river. The sky was dark, and she had a strange feeling that something would happen. Then the "
        "rain came, and the water rose to the bridge. Anna ran home just in time.",
    ),
    "Conflict": (
        "a conflict",
        "Tim and Sam both wanted the red truck. Tim pulled it, and Sam pulled it back. They shouted at each other, and "
        "then they took turns.",
    ),
}


def parse_answer(text: str) -> bool | None:
    """Return whether an answer is Yes or No; None for anything else.

    >>> [parse_answer(text) for text in ("Yes", " **no**.", "Yes, it has a twist.", "<answer>No</answer>")]
    [True, False, True, False]
    >>> [parse_answer(text) for text in ("", "Maybe", "No doubt it has one", "Yes and no", "The story has a twist")]
    [None, None, None, None, None]
    """
    text = re.sub(r"<[^>]*>", "", text).lower()
    match = re.match(r"[\W_]*(yes|no)(?=[\W_]*$|[*_]*[.,:;!\n])", text)
    if match is None or {"yes", "no"} <= {*re.findall(r"[a-z]+", text)}:
        return None
    return match[1] == "yes"


@dataclass(frozen=True)
class RemoteJudge:
    """A model that answers a question for each story and feature; each answer is kept in a file and asked for once.

    Attributes:
        url: of the endpoint, up to /v1.
        key: sent as a bearer token; None for none.
        folder: of the answers.
    """

    url: str
    model: str
    key: str | None = field(repr=False)
    folder: Path

    def verdicts(self, stories: Sequence[str]) -> list[dict[str, bool | None]]:
        """Return for each story whether it has each feature; None where the answer is neither Yes nor No.

        Raises:
            UsageError: if the endpoint refuses a question, or does not answer after several attempts; the answers so
                far are kept.
        """
        questions = {(story, feature): self._question(story, feature) for story in stories for feature in FEATURES}
        places = {asked: self._place(question) for asked, question in questions.items()}
        # By place, so that no file is written twice at once.
        missing = {place: questions[asked] for asked, place in places.items() if not place.is_file()}
        if missing:
            # Daemon threads: Ctrl-C does not wait for a server that is silent.
            with ThreadPool(AT_ONCE) as pool:
                asked_all = pool.imap_unordered(lambda each: self._ask(*each), missing.items())
                for _ in progress(asked_all, f"asking {self.model}", "questions", len(missing)):
                    pass
        kept = len(places) - len(missing)
        note(f"{self.model}: {len(missing):,} questions asked, {kept:,} answers were in {self.folder}")
        found = {asked: parse_answer(read_object(place)["answer"]) for asked, place in places.items()}
        return [{feature: found[story, feature] for feature in FEATURES} for story in stories]

    def check(self) -> None:
        """Ask one question, so that a wrong URL, key or model is refused before models are evaluated."""
        question = self._question(PLAIN, FEATURES[0])
        if not self._place(question).is_file():
            self._ask(self._place(question), question, WAITS[:2])

    def _question(self, story: str, feature: str) -> dict[str, Any]:
        name, example = EXAMPLES[feature]

        def asked(text: str) -> dict[str, str]:
            content = f"<story>\n{text}\n</story>\nDoes the story have {name}? Answer Yes or No."
            return {"role": "user", "content": content}

        yes, no = ({"role": "assistant", "content": answer} for answer in ("Yes", "No"))
        messages = [asked(example), yes, asked(PLAIN), no, asked(story)]
        return {"model": self.model, "messages": messages, "temperature": 0, "max_tokens": ANSWER_TOKENS}

    def _place(self, question: Mapping[str, Any]) -> Path:
        """Return the file of an answer: it depends on the server and all that it is asked."""
        asked = json.dumps([urlsplit(self.url).netloc, question], sort_keys=True)
        name = hashlib.sha256(asked.encode()).hexdigest()
        return self.folder / name[:2] / f"{name}.json"

    def _ask(self, place: Path, question: Mapping[str, Any], waits: Sequence[float] = WAITS) -> None:
        for wait in (*waits, None):
            try:
                answer = self._post(question)
                break
            except HTTPError as error:
                reason, later = f"{error.code} {error.reason}", error.headers.get("Retry-After") or ""
                with error:
                    says = error.read(300).decode(errors="replace")
                if error.code not in BUSY:
                    advice = ADVICE.get(error.code, f"check --judge_model {self.model}; the server says: {says}")
                    raise self._error(f"{reason}; {advice}") from None
            except (OSError, HTTPException) as error:
                reason, later = str(getattr(error, "reason", error)) or type(error).__name__, ""
            if wait is None:
                raise self._error(
                    f"no answer after {len(waits) + 1} attempts ({reason}); check that the server runs, and run the "
                    "same command again: the answers so far are kept"
                )
            time.sleep(max(wait, min(float(later), LONGEST_WAIT)) if later.isdecimal() else wait)
        write_json(place, {"server": urlsplit(self.url).netloc, "question": question, "answer": answer})

    def _post(self, question: Mapping[str, Any]) -> str:
        # Not huggingface_hub's InferenceClient: HF_HUB_OFFLINE stops it, and without a key it sends the Hub's token.
        request = Request(f"{self.url}/chat/completions", json.dumps(question).encode())
        request.add_header("Content-Type", "application/json")
        if self.key:
            request.add_unredirected_header("Authorization", f"Bearer {self.key}")
        with self._opener().open(request, timeout=TIMEOUT) as response:
            body = response.read()
        try:
            content = json.loads(body)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            raise self._error(
                "the answer has no choices[0].message.content, as OpenAI's chat completions have; check the URL, which "
                "usually ends in /v1"
            ) from None
        return content if isinstance(content, str) else ""  # a refusal has no content

    def _opener(self) -> OpenerDirector:
        # A proxy cannot reach this machine, and would see the key.
        return build_opener(*([ProxyHandler({})] if _is_local(self.url) else []))

    def _error(self, text: str) -> UsageError:
        text = text.replace(self.key, "...") if self.key else text  # a server may repeat it
        text = "".join(letter if letter.isprintable() else " " for letter in text)
        return UsageError(f"--judge_url {self.url}: {text}")


def open_judge(args: EvaluationArguments) -> RemoteJudge | None:
    """Return the judge of `--judge_url`, or None without it; nothing is contacted yet.

    Raises:
        UsageError: for a URL that is none or would send the key unencrypted, or a missing model.
    """
    if args.judge_url is None:
        return None
    url = args.judge_url.rstrip("/")
    try:
        form = url.isascii() and re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", url)
        valid = bool(form and urlsplit(url).hostname) and urlsplit(url).port != 0
    except ValueError:
        valid = False
    if not valid:
        # It may contain a password, so it is not repeated.
        raise UsageError(
            "--judge_url must be http:// or https:// with a host and a path, without user name, password or query; "
            f"give one such as http://127.0.0.1:8000/v1, and a key in the environment variable {KEY}"
        )
    if args.judge_model is None:
        raise UsageError(f"--judge_url {url} needs --judge_model; give the model's name on that server")
    key = os.environ.get(KEY, "").strip()
    if not re.fullmatch("[!-~]*", key):
        raise UsageError(f"{KEY} contains a space or a letter that no key has; set it again")
    if key and url.startswith("http:") and not _is_local(url):
        raise UsageError(
            f"--judge_url {url} would send the key of {KEY} unencrypted; give an https:// URL, or unset {KEY}"
        )
    return RemoteJudge(url, args.judge_model, key or None, Path(args.data_cache_dir) / FOLDER)


def _is_local(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
