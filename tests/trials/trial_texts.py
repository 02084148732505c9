"""A small trial file, and changes to it."""

import copy

import yaml

TRIAL = {
    "claim": "Weight decay lowers the loss.",
    "seeds": [0, 1],
    "prepare": ["prepare generate --num_stories 300", "prepare train_vocab --corpus generated --vocab_size 400"],
    "stages": {
        "pretrain": {
            "program": "train_gpt2.py",
            "dataset_name": "generated",
            "max_steps": 6,
            "arms": {"plain": {"weight_decay": 0.0}, "decayed": {"weight_decay": 0.1}},
        },
        "more": {"program": "train", "after": "pretrain", "dataset_name": "generated", "max_steps": 4},
    },
    "measure": ["eval_checkpoint.py --dataset_name generated"],
    "primary": {"measure": "loss", "dataset": "generated", "contrast": "plain - decayed", "margin": 0.01},
}


def changed(path, value):
    """Return the trial with one value set, or removed where it is None, by dotted path."""
    trial = copy.deepcopy(TRIAL)
    *above, last = path.split(".")
    place = trial
    for name in above:
        place = place[name]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return trial


def write_trial(path, trial=TRIAL):
    """Write a trial file and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(trial, sort_keys=False))
    return path
