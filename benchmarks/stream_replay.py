"""What resuming a stream costs: seconds for each million tokens that are skipped, held against tokenising alone.

    python benchmarks/stream_replay.py
    python benchmarks/stream_replay.py --num_stories 100000 --vocab_size 8192

A resumed stream is replayed up to the block that comes next: read, tokenised, shuffled, packed and let go.  The
baseline tokenises the same stories with the `tokenizers` library and does nothing else.  Repetitions are interleaved.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lm_trials.console import script, show_table
from lm_trials.flags import option, parse_arguments


@dataclass
class ReplayArguments:
    """How much is replayed."""

    num_stories: int = option(30_000, least=1, help="Generated stories.")
    vocab_size: int = option(4096, least=1, help="Tokens of the vocabulary, trained on them.")
    passes: float = option(1.5, above=0, help="Passes that are skipped: beyond 1 into the second.")
    repetitions: int = option(5, least=1, help="Interleaved repetitions; the table has medians.")


@script
def main(argv: list[str] | None = None) -> dict[str, float]:
    """Run the benchmark; returns seconds for each million tokens skipped, by kind."""
    (args,) = parse_arguments(argv, (ReplayArguments,), __doc__ or "")
    from lm_trials.data.documents import corpus_pairs, source_pairs
    from lm_trials.stories.corpora import open_records, write_corpus
    from lm_trials.stories.generated.generator import generate_stories
    from lm_trials.stories.records import record_from_row
    from lm_trials.stories.sources import open_source
    from lm_trials.tokens.stores import document_marks
    from lm_trials.tokens.streams import RecordStream, StreamBlocks
    from lm_trials.tokens.tokenizers import batch_encoder, train_tokenizer

    with tempfile.TemporaryDirectory() as folder:
        corpus, file = Path(folder) / "generated", Path(folder) / "stories.jsonl"
        write_corpus(((0, record_from_row(row)) for row in generate_stories(args.num_stories, seed=0)), corpus, {})
        stories = open_records(corpus, "train")["story"][:]
        tokenizer = train_tokenizer(stories[:10_000], args.vocab_size)
        file.write_text("".join(json.dumps({"text": story}) + "\n" for story in stories))
        source = open_source(str(file))
        marks = document_marks(tokenizer, append_eos=False)
        streams = {
            "--streaming True, a JSON lines file": partial(source_pairs, source, "train"),
            "--streaming CacheStream": partial(corpus_pairs, corpus, "train"),
        }
        tokens = sum(map(len, batch_encoder(tokenizer)(stories))) + len(stories)
        block = int(args.passes * tokens) // 256
        seconds: dict[str, list[float]] = {name: [] for name in ("tokenising alone", *streams)}
        for _ in range(args.repetitions):
            started = time.perf_counter()
            for at in range(0, len(stories), 1000):
                tokenizer._tokenizer.encode_batch_fast(stories[at : at + 1000])
            seconds["tokenising alone"].append((time.perf_counter() - started) / tokens * 1e6)
            for name, pairs in streams.items():
                blocks = StreamBlocks([RecordStream(name, pairs, tokenizer, marks)], 256, block + 1, data_seed=0)
                started = time.perf_counter()
                blocks[block]
                seconds[name].append((time.perf_counter() - started) / (block * 256) * 1e6)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    alone = medians["tokenising alone"]
    rows = [
        [name, f"{value:.2f}", f"{min(seconds[name]):.2f} to {max(seconds[name]):.2f}", f"{value / alone:.2f}"]
        for name, value in medians.items()
    ]
    columns = ["what", "s per million tokens", "from", "to tokenising alone"]
    show_table(f"{block * 256:,} tokens skipped, {args.repetitions} repetitions", columns, rows)
    return medians


if __name__ == "__main__":
    main()
