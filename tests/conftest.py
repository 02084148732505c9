"""What every test needs before any library is imported, and where real data may lie."""

import gc
import json
import os
from pathlib import Path

# Set before transformers, datasets and tokenizers are imported: they read these once.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",  # its warning after a fork is noise; ids do not depend on it (tested)
)
os.environ.pop("COLUMNS", None)  # pytest-xdist's workers have it; what is tested is as wide as in a file
os.environ.setdefault("OMP_NUM_THREADS", "2")  # several people share the cores

import pytest
from hypothesis import settings

REPOSITORY = Path(__file__).resolve().parents[1]
# Tests of these places and with these fixtures train models, run probes from the command line, read real stories or
# take seconds.
END_TO_END_PLACES = (
    *(
        "probes",
        "benchmarks",
        "test_families.py",
        "test_tuned_families.py",
        "models/test_families.py",
        "models/test_adapters.py",
    ),
    *("probing/test_activation_store.py", "probing/patching/test_swaps.py", "commands/test_train.py"),
    *("protocols/test_set_commands.py", "models/test_model_folders.py", "probing/test_other_families.py"),
    *("reporting/test_layer_figures.py", "evaluation/test_matrix.py", "tokens/test_streams.py"),
    *("stories/generated/test_detectors.py", "training/test_tuning_flags.py", "evaluation/test_remote_judge.py"),
    *("stories/test_pieces.py", "stories/test_splits.py", "trials/test_trial_report.py", "trials/test_publish.py"),
    *("evaluation/test_constraints.py", "metrics/test_tables.py", "metrics/test_describe.py"),
    *("dashboard/test_app.py", "dashboard/test_export.py", "rewards/test_preferences.py"),
)
END_TO_END_FIXTURES = {"train_flags", "tune_flags", "align_flags", "tiny_base", "shared_data"}


settings.register_profile("quick", max_examples=20)  # of the tests that name no number of their own


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark as `end_to_end` what `make quick` leaves out: by place, by fixture, or by the test's own mark."""
    places = {Path(__file__).parent / name for name in END_TO_END_PLACES}
    for item in items:
        implied = END_TO_END_FIXTURES.intersection(getattr(item, "fixturenames", ()))
        implied = implied or not places.isdisjoint([item.path, *item.path.parents])
        if implied and not item.get_closest_marker("quick"):
            item.add_marker("end_to_end")


def pytest_collection_finish():
    """Leave what the imports made out of each later collection of garbage, of which Trainer makes one in each run."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def same_environment():
    """Undo what a test sets for its process, as the demo does for the commands that it runs."""
    before = dict(os.environ)
    yield
    if os.environ != before:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data: `LM_TRIALS_SHARED_DATA`, else `../shared/data` beside the repository."""
    folder = Path(os.environ.get("LM_TRIALS_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set LM_TRIALS_SHARED_DATA to have this tested")
    return folder


TINY_SHAPE = "hidden_size=32,num_hidden_layers=2,num_attention_heads=2,intermediate_size=64"


@pytest.fixture(scope="session")
def tiny_shape() -> str:
    """Overrides of a Llama of 33,440 parameters (with 400 tokens)."""
    return TINY_SHAPE


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    """A data folder with a corpus `tiny` of 400 generated stories, and `tok400`, made by the project's own commands."""
    import prepare_tinystories

    folder = tmp_path_factory.mktemp("data")
    data = ["--corpus", "tiny", "--data_cache_dir", str(folder)]
    prepare_tinystories.main(["generate", "--num_stories", "400", "--seed", "7", *data])
    prepare_tinystories.main(["train_vocab", "--vocab_size", "400", *data])
    prepare_tinystories.main(["pretokenize", "--vocab_size", "400", *data])
    return folder


@pytest.fixture
def train_flags(tiny_data, tmp_path):
    """Return the flags of a training of some seconds into `tmp_path / name`, with more flags after them."""

    def flags(name: str, *more: str) -> list[str]:
        given = {
            "dataset_name": "tiny",
            "data_cache_dir": tiny_data,
            "vocab_size": 400,
            "model_type": "llama",
            "config_overrides": TINY_SHAPE,
            "block_size": 32,
            "per_device_train_batch_size": 4,
            "max_steps": 4,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "save_strategy": "no",
            "num_sampled_stories": 0,
            "report_to": "none",
            "output_dir": tmp_path / name,
        }
        return [word for key, value in given.items() for word in (f"--{key}", str(value))] + list(more)

    return flags


@pytest.fixture(scope="session")
def tiny_base(tiny_data) -> Path:
    """A run folder with a Llama of 33,440 parameters and 64 positions, trained for some updates."""
    import train_gpt2

    folder = tiny_data / "base"
    flags = {
        "dataset_name": "tiny", "data_cache_dir": tiny_data, "vocab_size": 400, "model_type": "llama",
        "config_overrides": TINY_SHAPE, "block_size": 64, "max_steps": 30, "learning_rate": 5e-3, "save_strategy": "no",
        "num_sampled_stories": 0, "report_to": "none", "output_dir": folder,
    }  # fmt: skip
    train_gpt2.main([word for key, value in flags.items() for word in (f"--{key}", str(value))])
    return folder


@pytest.fixture(scope="session")
def tiny_pairs(tiny_data) -> Path:
    """A file of 120 pairs of different lengths, all of which fit 64 tokens."""
    rows = [
        {"prompt": f"Write about {number % 7} cats.", "completion": " ".join(["The cat sat."] * (1 + number % 3))}
        for number in range(120)
    ]
    rows = [{**row, "prompt": f"{row['prompt']} {number}"} for number, row in enumerate(rows)]
    path = tiny_data / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def tune_flags(tiny_base, tiny_pairs, tiny_data, tmp_path):
    """Return the flags of a fine-tuning of some seconds into `tmp_path / name`, with more flags after them."""

    def flags(name: str, *more: str) -> list[str]:
        given = {
            "model_name_or_path": tiny_base,
            "dataset_name": tiny_pairs,
            "validation_split_percentage": 10,
            "data_cache_dir": tiny_data,
            "max_length": 64,
            "lora_r": 2,
            "per_device_train_batch_size": 4,
            "max_steps": 4,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "output_dir": tmp_path / name,
        }
        return [word for key, value in given.items() for word in (f"--{key}", str(value))] + list(more)

    return flags


REWARD = """
def letters(prompts, completions, **columns):
    return [text.count("a") / 10 for text in completions]
"""


@pytest.fixture(scope="session")
def tiny_preferences(tiny_data, tiny_pairs) -> Path:
    """A file of the prompts of `tiny_pairs`, whose completions are preferred to others."""
    rows = [json.loads(line) for line in tiny_pairs.read_text().splitlines()]
    rows = [
        {"prompt": row["prompt"], "chosen": row["completion"], "rejected": "A dog ran." * (1 + number % 2)}
        for number, row in enumerate(rows)
    ]
    path = tiny_data / "preferences.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def align_flags(tiny_base, tiny_pairs, tiny_preferences, tiny_data, tmp_path):
    """Return the flags of an alignment of a second into `tmp_path / name`, with more flags after them."""
    (tmp_path / "mine.py").write_text(REWARD)

    def flags(method: str, name: str, *more: str) -> list[str]:
        given = {
            "method": method,
            "model_name_or_path": tiny_base,
            "dataset_name": tiny_preferences if method == "dpo" else tiny_pairs,
            "validation_split_percentage": 10,
            "data_cache_dir": tiny_data,
            "lora_r": 2,
            "per_device_train_batch_size": 4,
            "max_steps": 4,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "output_dir": tmp_path / name,
        }
        if method == "grpo":
            given |= {"num_generations": 4, "max_completion_length": 8}
            more = ("--reward_funcs", "length:5", f"{tmp_path / 'mine.py'}:letters", *more)
        return [word for key, value in given.items() for word in (f"--{key}", str(value))] + list(more)

    return flags
