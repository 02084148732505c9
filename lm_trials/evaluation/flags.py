"""The flags of `eval_checkpoint.py`; no torch."""

from dataclasses import dataclass
from typing import Literal

from lm_trials.flags import option
from lm_trials.shared_flags import DataReading, Device

SLICES = ("features", "source")


@dataclass
class EvaluationArguments(DataReading, Device):
    """Which models are evaluated on which stories, and how."""

    model_name_or_path: list[str] = option(
        [],
        aliases=["--model_dir"],
        required="RUN_OR_CHECKPOINT",
        help="Run, checkpoint, model folder or Hub name; several make a matrix.",
    )
    dataset_name: list[str] = option(
        ["generated"], help="A prepared corpus, else a file or folder, else a Hub data set; several make a matrix."
    )
    data_mix: str | None = option(None, help="Shares of the parts a+b, as .3,.7. Default: equal.")
    dataset_split: str | None = option(
        None, help="Split. Default: validation of a prepared corpus or Hub data set; a path is evaluated whole."
    )
    tokenizer_name: str | None = option(None, help="Another tokenizer than the one beside the model.")
    max_eval_samples: int | None = option(None, least=1, help="Stories evaluated, from the start; default all.")
    layout: Literal["per_story", "packed"] = option(
        "per_story", help="Each story by itself, or all joined and cut into windows as in pretraining."
    )
    block_size: int | None = option(
        None, least=2, help="Window, in tokens. Default: the model's positions, at most 1024."
    )
    attention_across_documents: bool = option(True, help="In packed form: whether a story sees the one before it.")
    append_eos: bool | None = option(None, help="Score EOS after each story. Default: as the model was trained.")
    per_device_eval_batch_size: int = option(
        16, least=1, help="Windows of a batch; changes speed and memory, no result."
    )
    by: list[str] = option([], one_of=SLICES, help="Slices: features, source.")
    all_checkpoints: bool = option(False, help="Evaluate every checkpoint of a run, and its final model.")
    generate: int = option(0, least=0, help="Continue this many stories and score them against the records' own.")
    score_features: bool = option(
        False, help="Let the model write for the prompts of a set, and say how often it writes the features asked for."
    )
    num_generations: int = option(256, least=1, help="Stories of --score_features, of each set.")
    max_new_tokens: int = option(400, least=1, help="Most tokens of such a story.")
    prompt_share: float = option(
        0.4, above=0, below=1, help="Share of a story's tokens that is given before the model goes on."
    )
    temperature: float | None = option(
        None, least=0, help="Sampling temperature; 0 is greedy. Default: 0 for --generate, 1 for --score_features."
    )
    seed: int = option(0, least=0, help="Seed of the intervals and of the sampling.")
    output_dir: str | None = option(None, help="Folder of the results. Default: <model>/eval/<data set>.")
    tables_dir: str = option("out/tables", help="Folder of the tables of --generate.")
    matrix_dir: str = option(
        "out/tables/matrix", help="Folder of matrix.csv, .json and .png, written when several pairs are evaluated."
    )
