"""Names of data by content, so that a copy of a corpus is the same data.

A corpus is identified by the hash of its record ids, a protocol set by that and its protocol, a file by the hash of its
bytes.  A Hub data set cannot be hashed without a download; its name and configuration identify it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lm_trials.stories.corpora import is_corpus, read_manifest


def content_name(content: str, protocol: Mapping[str, Any] | None = None) -> str:
    """Return the name of a corpus, or of the set that a protocol makes of it.

    >>> content_name("9f86d081884c7d65"), content_name("9f86d081884c7d65", {"seed": 0})
    ('9f86d081884c7d65', '9f86d081884c7d65+{"seed": 0}')
    """
    return content if protocol is None else f"{content}+{json.dumps(protocol, sort_keys=True)}"


def files_digest(sums: Mapping[str, Mapping[str, Any]]) -> str:
    """Return 16 digits over all files' checksums: they also see whitespace, which `content` ignores."""
    text = json.dumps({name: entry["sha256"] for name, entry in sums.items()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def hub_name(reference: str, config: str | None) -> str:
    """Return the name of a Hub data set, equal for all its splits and revisions.

    >>> hub_name("owner/pile", "pubmed")
    'hub owner/pile pubmed'
    """
    return f"hub {reference} {config or ''}".strip()


def contents_of(data: Any, data_cache_dir: Path) -> Iterator[str]:
    """Yield the names of all data that `outcome.data` describes, at any depth, such as each part of a mixture.

    >>> list(contents_of({"first": {"content": "a"}, "second": {"content": "b"}}, Path("data")))
    ['a', 'b']
    """
    if isinstance(data, Mapping):
        protocol = data.get("protocol")
        for key in ("content", "fingerprint"):
            if isinstance(data.get(key), str):
                yield content_name(data[key], protocol)
        if isinstance(data.get("files"), list):  # the hashes of a source of files
            yield from data["files"]
        if "read_as" in data:  # a source of the Hub
            yield hub_name(data["reference"], data.get("dataset_config_name"))
        if protocol is None and isinstance(data.get("corpus"), str):
            yield from contents_of(_origin(data_cache_dir / data["corpus"], data.get("content")), data_cache_dir)
    if isinstance(data, (Mapping, list)):
        for inner in data.values() if isinstance(data, Mapping) else data:
            yield from contents_of(inner, data_cache_dir)


def _origin(corpus: Path, content: Any) -> Any:
    """Return the origin in a corpus's manifest, if the corpus is unchanged."""
    manifest = read_manifest(corpus) if is_corpus(corpus) else {}
    return manifest.get("origin") if manifest.get("content") == content else None
