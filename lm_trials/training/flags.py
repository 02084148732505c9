"""The flags of a training script that need no torch: ours, and those of `TrainingArguments` that `--help` shows."""

from dataclasses import dataclass
from typing import Literal

from lm_trials.flags import option
from lm_trials.shared_flags import DataReading


@dataclass
class DataArguments(DataReading):
    """What is trained on."""

    dataset_name: str = option(
        "generated", help="A prepared corpus in --data_cache_dir, else a file or folder, else a Hub data set."
    )
    data_mix: str | None = option(None, help="Share of each part of a mixture, as .3,.7. Default: equal shares.")
    data_mix_unit: Literal["tokens", "documents"] = option("tokens", help="What those are shares of.")
    stop_when: Literal["first_exhausted", "all_exhausted"] = option(
        "first_exhausted", help="When a pass over a mixture ends; all_exhausted: parts that end early begin anew."
    )
    validation_split_percentage: float | None = option(
        None,
        above=0,
        most=50,
        help="Share of a train split without a validation split that becomes one, by hash of the document.",
    )
    eval_datasets: str | None = option(
        None, help="Sets or corpora, as a,b, whose validation splits are evaluated too, with the train and test splits."
    )
    tokenizer_name: str | None = option(
        None, help="Tokenizer: a folder, a SentencePiece .model file or a Hub name. Default: --vocab_size's."
    )
    vocab_size: int = option(
        0,
        least=0,
        help="Use the tokenizer made by `prepare_tinystories.py train_vocab --vocab_size N`; 0: --tokenizer_name.",
    )
    block_size: int | None = option(
        None, least=2, help="Tokens of a training block. Default: the shape's positions, at most 1024."
    )
    append_eos: bool = option(False, help="Close each story with EOS, beside the BOS before it.")
    document_separator: Literal["bos", "eos", "none"] = option("bos", help="Token before each story.")
    attention_across_documents: bool = option(
        True, help="Whether a token may attend to the story before its own in the block, as in the published runs."
    )
    shuffle_buffer_size: int | None = option(
        None,
        least=1,
        help="Documents of the shuffle buffer. Default: all, a full shuffle, or of a stream 10000; 1 keeps the order.",
    )
    max_train_tokens: int | None = option(
        None, least=1, help="Train on so many tokens, met within one update; instead of --max_steps."
    )
    max_eval_samples: int | None = option(
        500, least=1, help="Stories of each split that are evaluated during training."
    )
    dense_eval_steps: int = option(0, least=0, help="Updates at the start with ten times as many evaluations.")
    dense_eval_spacing: Literal["linear", "geometric"] = option(
        "linear", help="geometric: those evaluations grow apart by a constant factor."
    )
    generate_every: int = option(
        5, least=0, help="Let the model write for prompts of the sets at each N-th evaluation; 0: never."
    )
    num_generations: int = option(16, least=1, help="Stories written for each set then.")
    generation_tokens: int = option(200, least=1, help="Most tokens of such a story.")


@dataclass
class ModelArguments:
    """What is trained."""

    model_name_or_path: str | None = option(
        None, aliases=["--model_dir"], help="Go on from these weights: a run, a checkpoint, a model folder or Hub name."
    )
    model_type: str | None = option(
        None, help="Architecture: gpt2, llama or any type of AutoModelForCausalLM. Default: the preset's, else gpt2."
    )
    config_name: str | None = option(
        None, help="A preset (stories260K, base8M, base30M, base91M, base210M, gpt2-51M, demo, ...) or a config.json."
    )
    config_overrides: str | None = option(
        None, help="Fields of the model's config, as n_embd=512,n_layer=8,n_head=8 or hidden_size=256,..."
    )
    dropout: float | None = option(
        None,
        least=0,
        below=1,
        help="GPT-2: residual, embedding and attention dropout (library default 0.1). Llama: attention only.",
    )
    num_sampled_stories: int = option(
        2, least=0, help="Stories written at each evaluation, into TensorBoard; 0 for none."
    )
    sample_tokens: int = option(200, least=1, help="Most tokens of a sampled story.")
    overwrite_output_dir: bool = option(False, help="Remove another run that --output_dir holds.")
    accept_other_code: bool = option(
        False, help="Resume a run although this project or a library has changed since it was started."
    )


@dataclass
class CommonTrainingArguments:
    """The most used of transformers.TrainingArguments; `--help_all` shows the rest."""

    output_dir: str = option("runs/<run_name>", help="Folder of the run.")
    run_name: str = option("<model>-<data>-s<seed>", help="Name of the run.")
    max_steps: int = option(-1, least=1, unless=-1, help="Updates to make; overrides --num_train_epochs.")
    num_train_epochs: float = option(3.0, above=0, help="Passes over the training split.")
    per_device_train_batch_size: int = option(8, least=1, help="Blocks of a process's batch.")
    per_device_eval_batch_size: int = option(8, least=1, help="Blocks of a batch in evaluation.")
    gradient_accumulation_steps: int = option(1, least=1, help="Batches of an update.")
    learning_rate: float = option(
        5e-5, least=0, help="Peak learning rate of AdamW; docs/choosing_sizes.md says what suits."
    )
    lr_scheduler_type: str = option("linear", help="Schedule: linear, cosine, constant, constant_with_warmup, ...")
    warmup_steps: float = option(0, least=0, help="Updates of warm-up, or their share if below 1.")
    weight_decay: float = option(0.0, least=0, help="Weight decay of AdamW, on matrices only.")
    eval_strategy: str = option("no", help="no, steps or epoch.")
    eval_steps: float = option(None, help="Updates between evaluations, or their share if below 1.")
    save_steps: float = option(500, help="Updates between checkpoints, or their share if below 1.")
    logging_steps: float = option(10, help="Updates between log lines, or their share if below 1.")
    seed: int = option(42, least=0, most=2**32 - 1, help="Seed of weights and dropout.")
    data_seed: int = option(None, least=0, most=2**32 - 1, help="Seed of the data order. Default: --seed.")
    bf16: bool = option(False, help="Mixed precision; for GPUs that have it.")
    report_to: str = option("tensorboard", help="tensorboard, wandb, trackio, none.")
    do_train: bool = option(False, help="Train; the default unless only --do_eval is given.")
    do_eval: bool = option(False, help="Evaluate the end result; alone: evaluate what --output_dir holds.")
    resume_from_checkpoint: str = option(
        None, help="A checkpoint folder. Default: the last one, where --output_dir holds this very run; False: never."
    )
