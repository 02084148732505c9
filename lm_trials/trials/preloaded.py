"""What jobs need, imported: the fork server of the local workers imports this module once, for all of them."""

from importlib import import_module

from lm_trials.console import load_libraries

load_libraries()
for _name in ("lm_trials.training.trainer", "lm_trials.evaluation.checkpoints"):
    import_module(_name)
