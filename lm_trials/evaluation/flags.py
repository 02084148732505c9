"""The flags of `lm-trials evaluate`; no torch."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from lm_trials.flags import SEED, option
from lm_trials.shared_flags import DataReading, Device
from lm_trials.stories.features import FEATURES

SLICES = ("features", "source")


@dataclass
class EvaluationArguments(DataReading, Device):
    """Which models are evaluated on which data sets, and how."""

    flag_group: ClassVar[str] = "evaluation"

    model_name_or_path: list[str] = option(
        [],
        aliases=["--model_dir"],
        required="RUN_OR_CHECKPOINT",
        group="model",
        help="Run, checkpoint, model folder or Hub name; several make a matrix.",
    )
    dataset_name: list[str] = option(
        [],
        group="data",
        help="A prepared corpus, else a file or folder, else a Hub data set; several make a matrix. Default: the data "
        "of the first model's run.",
    )
    data_mix: str | None = option(None, group="data", help="Shares of the parts of a+b, such as .3,.7. Default: equal.")
    dataset_split: str | None = option(
        None, group="data", help="Split. Default: validation; a file or folder is evaluated whole."
    )
    tokenizer_name: str | None = option(None, group="model", help="Tokenizer to use instead of the model's own.")
    max_eval_samples: int | None = option(
        None, least=1, group="data", help="Stories evaluated, from the start; default all."
    )
    layout: Literal["per_story", "packed"] = option(
        "per_story", help="Each story alone, or all joined and cut into windows as in pretraining."
    )
    block_size: int | None = option(None, least=2, help="Window, in tokens. Default: the positions, up to 1024.")
    attention_across_documents: bool = option(
        True, help="With --layout packed: whether a story attends to the ones before it."
    )
    append_eos: bool | None = option(None, help="Score EOS after each story. Default: as the model was trained.")
    per_device_eval_batch_size: int = option(16, least=1, help="Windows per batch; no effect on results.")
    by: list[str] = option([], one_of=SLICES, help="Also report results by features, by source, or both.")
    sentences_with: list[str] = option(
        [],
        one_of=FEATURES,
        distinct=True,
        not_with="layout",
        help="Also report the loss of the sentences that show a feature, such as Twist.",
    )
    all_checkpoints: bool = option(False, help="Evaluate all checkpoints of each run and its final model.")
    generate: int = option(
        0, least=0, group="generation", help="Number of stories that the model continues; scored against the originals."
    )
    score_features: bool = option(
        False,
        group="generation",
        help="Generate from a protocol set's prompts and score the features that they ask for.",
    )
    judge_url: str | None = option(
        None,
        needs="score_features",
        group="generation",
        help="OpenAI-compatible endpoint, such as http://127.0.0.1:8000/v1, that judges the features instead of the "
        "detectors; its key, if any, is read from LM_TRIALS_JUDGE_KEY.",
    )
    judge_model: str | None = option(
        None, filled=True, needs="judge_url", group="generation", help="The model's name at --judge_url."
    )
    num_generations: int = option(256, least=1, group="generation", help="Stories per data set for --score_features.")
    max_new_tokens: int = option(
        400, least=1, group="generation", help="Maximum tokens per story for --score_features."
    )
    prompt_share: float = option(
        0.4,
        above=0,
        below=1,
        group="generation",
        help="Share of each story's tokens that is the prompt for --generate.",
    )
    temperature: float | None = option(
        None, least=0, group="generation", help="0 is greedy. Default: 0 for --generate, 1 for --score_features."
    )
    seed: int = option(0, **SEED, help="Seed of the intervals and of sampling.")
    output_dir: str | None = option(
        None, output=True, group="output", help="Folder of the results. Default: <model>/eval/<data set>."
    )
    tables_dir: str = option("out/tables", filled=True, group="output", help="Folder of the tables of --generate.")
    matrix_dir: str = option(
        "out/tables/matrix", filled=True, group="output", help="Folder of matrix.csv, matrix.json and matrix.png."
    )
