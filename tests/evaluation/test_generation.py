"""Stories that a model writes, and how they are scored."""

import numpy as np
import pytest
import torch
from tiny_models import KINDS, tiny_model, tiny_tokenizer
from transformers import JambaConfig, JambaForCausalLM, LlamaForCausalLM, RwkvConfig, RwkvForCausalLM

from lm_trials.console import UsageError
from lm_trials.evaluation.continuations import ContinuationOverlap
from lm_trials.evaluation.generation import batching, write_stories

TOKENIZER = tiny_tokenizer()
PROMPTS = [[1, 40, 41, 42, 43], [1, 50], [1, 60, 61, 62]]


def write(model, prompts=PROMPTS, **options):
    return write_stories(model, TOKENIZER, prompts, **{"max_new_tokens": 8, "temperature": 0.0, **options})


def greedy(model, prompt, count):
    """The likeliest token again and again, without cache, padding or `generate`."""
    ids, written = list(prompt), []
    for _ in range(count):
        with torch.no_grad():
            token = int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        if token in (1, 2):
            break
        written.append(token)
        ids.append(token)
    return written


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_greedy_is_the_likeliest_token_each_time_in_any_batch(kind, batch_size):
    """Prompts of different lengths are padded on the left, which must move neither positions nor attention."""
    model = tiny_model(kind, vocab_size=330)
    written = write(model, batch_size=batch_size)
    assert written == [greedy(model, prompt, 8) for prompt in PROMPTS]
    assert written[0] != written[1]


@pytest.mark.parametrize("end", [1, 2])
def test_a_story_ends_at_eos_and_at_the_next_bos(end):
    model = tiny_model("llama", vocab_size=330)
    first = write(model, [PROMPTS[0]])[0]
    with torch.no_grad():  # after the third token, `end` is likelier than anything
        model.lm_head.weight[end] = 10 * model.lm_head.weight[first[2]]
    cut = write(model, [PROMPTS[0]])[0]
    assert cut == greedy(model, PROMPTS[0], 8)
    assert len(cut) < 8
    assert not {1, 2} & set(cut)


def test_a_story_stops_where_its_own_text_says_so():
    """Each of a batch by itself; the others go on."""
    model = tiny_model("llama", vocab_size=330)
    whole = write(model)
    texts = [TOKENIZER.decode(ids) for ids in whole]
    wanted = TOKENIZER.decode(whole[0][:3])
    assert wanted not in texts[1]
    stopped = write(model, ended=lambda tail: tail.startswith(wanted))
    assert stopped[0] == whole[0][:3]
    assert stopped[1] == whole[1]
    assert write(model, ended=lambda tail: False) == whole


def test_sampling_follows_its_seed_and_leaves_the_runs_own_draws_alone():
    model = tiny_model("llama", vocab_size=330).train()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = (write(model, temperature=1.0, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    assert first == again
    assert first != other
    assert model.training
    assert torch.is_grad_enabled()


def test_what_does_not_fit_the_positions_is_refused():
    message = "a prompt of 5 tokens and 60 new tokens are more than the model's 64 positions"
    with pytest.raises(UsageError, match=message):
        write(tiny_model("gpt2", vocab_size=330), max_new_tokens=60)
    assert write(tiny_model("gpt2", vocab_size=330), max_new_tokens=59)


def test_overlap_scores_each_story_by_itself():
    scores = ContinuationOverlap().compute(
        predictions=["the cat sat on the mat", "", "a b c d"],
        references=["the cat sat on the mat", "the cat sat", "w x y z u v w x"],
    )
    assert scores["bleu"] == pytest.approx([100, 0, 0], abs=6)
    assert scores["rouge_l"].tolist() == [1, 0, 0]
    assert scores["length_ratio"].tolist() == [1, 0, 0.5]
    assert isinstance(scores["bleu"], np.ndarray)


class Maskless(LlamaForCausalLM):
    """A Llama that reads the padding, as models without an attention mask do."""

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, **kwargs):
        return super().forward(input_ids, **kwargs)


def unusual(kind):
    torch.manual_seed(0)
    shape = {"vocab_size": 330, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    if kind == "rwkv":
        return RwkvForCausalLM(RwkvConfig(**shape, attention_hidden_size=16, context_length=64)).eval()
    if kind == "jamba":  # of its two layers none has attention
        state = {"mamba_d_state": 4, "mamba_dt_rank": 4, "num_experts": 2, "initializer_range": 0.2}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
        return JambaForCausalLM(JambaConfig(**shape, **state, **heads, pad_token_id=None)).eval()
    llama = tiny_model("llama", vocab_size=330)
    model = Maskless(llama.config)
    model.load_state_dict(llama.state_dict())
    return model.eval()


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("llama", ("equal", True)), ("rwkv", ("single", True)), ("jamba", ("padded", False))],
)
def test_a_model_that_padding_or_a_cache_would_change_is_asked_otherwise(kind, expected, capsys):
    """Batches of one length, of one story, or no cache: the story is what the model predicts, and it is told once."""
    model, prompts = unusual(kind), [*PROMPTS, [1, 70]]
    assert write(model, prompts) == [greedy(model, prompt, 8) for prompt in prompts]
    assert batching(model) == expected
    assert write(model, prompts, temperature=1.0) == write(model, prompts, temperature=1.0, batch_size=1)
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: a ")]
    assert len(told) == 1
    assert batching(tiny_model("llama", vocab_size=330)) == ("padded", True)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_predictions_that_overflow_are_refused_and_write_no_text(temperature):
    model = tiny_model("llama", vocab_size=330)
    assert write(model, temperature=temperature)
    overflowing = tiny_model("llama", vocab_size=330)
    with torch.no_grad():
        for layer in overflowing.model.layers:
            layer.mlp.up_proj.weight.mul_(1e38)
            layer.mlp.down_proj.weight.mul_(1e38)
    with pytest.raises(UsageError, match="predictions are nan"):
        write(overflowing, temperature=temperature)
