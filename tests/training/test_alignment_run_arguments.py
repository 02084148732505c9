"""Flags of alignments that trl refuses late, ignores, or refuses for no reason here."""

import pytest
from refusals import usage_error

from lm_trials.training.alignment_run_arguments import DpoRunArguments, GrpoRunArguments

KINDS = {"dpo": DpoRunArguments, "grpo": GrpoRunArguments}


def made(method, **flags):
    return KINDS[method](output_dir="run", use_cpu=True, report_to="none", **flags)


@pytest.mark.parametrize(
    ("method", "flags", "line"),
    [
        ("dpo", {"loss_type": ["sigmoid", "hinges"]}, "--loss_type hinges: did you mean hinge?"),
        ("dpo", {"f_divergence_type": "forward"}, "--f_divergence_type forward: did you mean forward_kl?"),
        ("grpo", {"loss_type": "dpo"}, "--loss_type dpo: did you mean dapo?"),
        ("grpo", {"importance_sampling_level": "word"}, "--importance_sampling_level word: "),
        ("grpo", {"scale_rewards": "groups"}, "--scale_rewards groups: did you mean group?"),
        ("grpo", {"multi_objective_aggregation": "sum"}, "--multi_objective_aggregation sum: "),
        ("grpo", {"min_p": 2.0}, "--min_p 2 must be at least 0 and at most 1"),
        ("grpo", {"repetition_penalty": 0.0}, "--repetition_penalty 0 must be above 0"),
        ("grpo", {"vllm_mode": "server"}, "--vllm_mode server has no effect here; vLLM is not used"),
        ("dpo", {"label_smoothing": 0.1}, "--label_smoothing 0.1 has no effect with --loss_type sigmoid; give one of"),
        (
            "dpo",
            {"label_smoothing": 0.5, "loss_type": ["robust"]},
            "--label_smoothing 0.5 must be at least 0 and",
        ),
        ("dpo", {"activation_offloading": True}, "--activation_offloading True moves activations from a GPU"),
        *((method, {"sync_ref_model": True}, "--sync_ref_model True has no effect here; ") for method in KINDS),
        ("dpo", {"ref_model_sync_steps": 2}, "--ref_model_sync_steps 2 has no effect here; "),
    ],
)
def test_a_flag_that_cannot_be_used_is_named(method, flags, line):
    assert usage_error(made, method, **flags).startswith(line)


def test_words_that_trl_knows_are_taken():
    assert made("dpo", label_smoothing=0.1, loss_type=["sigmoid", "robust"]).label_smoothing == 0.1
    for given, scale in ((True, "group"), (False, "none"), ("batch", "batch")):
        assert made("grpo", scale_rewards=given, loss_type="luspo").scale_rewards == scale


def test_completions_of_an_evaluation_need_not_divide_its_batch():
    args = made("grpo", num_generations_eval=3, per_device_eval_batch_size=8, eval_strategy="steps", eval_steps=1)
    assert args.do_eval
    assert args.num_generations_eval == 3
