"""What every test needs before any library is imported, and where real data may lie."""

import os
from pathlib import Path

# Set before transformers, datasets and tokenizers are imported: they read these once.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",  # its warning after a fork is noise; ids do not depend on it (tested)
)
os.environ.setdefault("OMP_NUM_THREADS", "2")  # several people share the cores

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data: `LM_TRIALS_SHARED_DATA`, else `../shared/data` beside the repository."""
    folder = Path(os.environ.get("LM_TRIALS_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set LM_TRIALS_SHARED_DATA to have this tested")
    return folder
