"""What data is known by: names that follow from its content, so that a copy of a corpus is the same data.

A corpus is known by the hash of its record names, a protocol set by that and its protocol, a file by the hash of its
bytes.  A Hub data set, which is not at hand to be hashed, is known by its name and configuration.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lm_trials.stories.corpora import is_corpus, read_manifest


def content_name(content: str, protocol: Mapping[str, Any] | None = None) -> str:
    """Return what a corpus, or the set that a protocol makes of it, is known by.

    >>> content_name("9f86d081884c7d65"), content_name("9f86d081884c7d65", {"seed": 0})
    ('9f86d081884c7d65', '9f86d081884c7d65+{"seed": 0}')
    """
    return content if protocol is None else f"{content}+{json.dumps(protocol, sort_keys=True)}"


def hub_name(reference: str, config: str | None) -> str:
    """Return what a Hub data set is known by, whichever split or revision of it is read.

    >>> hub_name("owner/pile", "pubmed")
    'hub owner/pile pubmed'
    """
    return f"hub {reference} {config or ''}".strip()


def contents_of(data: Any, data_cache_dir: Path) -> Iterator[str]:
    """Yield the names of all data that `outcome.data` describes, at any depth: each part of a mixture counts.

    >>> list(contents_of({"first": {"content": "a"}, "second": {"content": "b"}}, Path("data")))
    ['a', 'b']
    """
    if isinstance(data, Mapping):
        protocol = data.get("protocol")
        for key in ("content", "fingerprint"):
            if isinstance(data.get(key), str):
                yield content_name(data[key], protocol)
        if isinstance(data.get("files"), list):  # of a source of files: what each is known by
            yield from data["files"]
        if "read_as" in data:  # where a source of the Hub says what it is
            yield hub_name(data["reference"], data.get("dataset_config_name"))
        if protocol is None and isinstance(data.get("corpus"), str):
            yield from contents_of(_origin(data_cache_dir / data["corpus"], data.get("content")), data_cache_dir)
    if isinstance(data, (Mapping, list)):
        for inner in data.values() if isinstance(data, Mapping) else data:
            yield from contents_of(inner, data_cache_dir)


def _origin(corpus: Path, content: Any) -> Any:
    """Return what a corpus's manifest says of the file or Hub data set it was made of, if it is still as it was."""
    manifest = read_manifest(corpus) if is_corpus(corpus) else {}
    return manifest.get("origin") if manifest.get("content") == content else None
