"""The command that writes stories: its three modes, what it shows while it writes, and what it refuses."""

import io
import json

import numpy as np
import pytest
import torch
from tiny_models import TEXT, tiny_model, tiny_tokenizer
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from lm_trials.evaluation import generate, storytellers
from lm_trials.evaluation.generation import own_draws, write_stories
from lm_trials.evaluation.streamers import FoldedText, StoryStreamer
from lm_trials.models.adapters import LoraSpec, add_lora
from lm_trials.pairs.layouts import STORY_CHAT_TEMPLATE, chat_example, instruct_examples, text_examples

PROMPT = "a quick cat"
TOKENIZER = tiny_tokenizer()


@pytest.fixture
def model(tmp_path):
    """A folder with a tiny Llama that can be asked in every mode."""
    return save(tmp_path / "model")


def save(folder, kind="llama", tokenizer=None, **shape):
    tokenizer = tokenizer or tiny_tokenizer()
    tokenizer.chat_template = STORY_CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    tiny_model(kind, vocab_size=330, **shape).save_pretrained(folder)
    return folder


def write(folder, *more):
    return generate.main(["--model", str(folder), "--max_new_tokens", "12", *map(str, more)])


@pytest.fixture
def given(monkeypatch):
    """What the model was given by each call, in place of a story."""
    found = []

    def record(model, tokenizer, prompts, **options):
        found.append(prompts)
        return [[] for _ in prompts]

    monkeypatch.setattr(storytellers, "write_stories", record)
    return found


def pair(mode):
    if mode == "instruct":
        return instruct_examples(TOKENIZER, [PROMPT], ["the dog sat"])[0]
    if mode == "completion":
        return text_examples(TOKENIZER, [PROMPT])[0]
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = STORY_CHAT_TEMPLATE
    said = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": "the dog sat"}]
    return chat_example(tokenizer, said)


@pytest.mark.parametrize("mode", ["completion", "instruct", "chat"])
def test_a_model_is_asked_as_its_training_examples_begin(mode, model, given):
    write(model, "--mode", mode, "--prompt", PROMPT)
    ((prompt,),) = given
    example = pair(mode)
    assert example.input_ids[: len(prompt)] == prompt
    others = {"completion": "instruct", "instruct": "completion", "chat": "completion"}
    assert pair(others[mode]).input_ids[: len(prompt)] != prompt
    if mode != "completion":  # the prompt ends with BOS, which opens the answer; all after it counts in the loss
        assert example.completion_mask[len(prompt) :] == [1] * (len(example.input_ids) - len(prompt))


def test_without_a_word_the_model_begins(model, given):
    write(model)
    assert given == [[[TOKENIZER.bos_token_id]]]


@pytest.mark.parametrize(
    ("layout", "mode"), [("instruct", "instruct"), ("chat", "chat"), ("text", "completion"), (None, "completion")]
)
def test_a_run_is_asked_as_it_was_trained(layout, mode, model, given):
    outcome = {"prompt_layout": layout} if layout else {}
    (model / "run.json").write_text(json.dumps({"outcome": outcome, "replicate": {"seed": 3}}))
    write(model, "--prompt", PROMPT)
    ((prompt,),) = given
    assert pair(mode).input_ids[: len(prompt)] == prompt


def test_a_run_without_bos_between_its_documents_is_begun_as_they_were(model, given):
    (model / "run.json").write_text(json.dumps({"outcome": {"document_separator": "eos"}, "replicate": {"seed": 3}}))
    write(model, "--prompt", PROMPT)
    assert given[0][0][0] == TOKENIZER.eos_token_id != TOKENIZER.bos_token_id


@pytest.mark.parametrize("end", ["bos", "eos"])
def test_a_story_is_cut_at_its_end_in_what_is_shown_and_returned(end, model, capsys):
    whole = write(model, "--mode", "instruct", "--prompt", PROMPT, "--temperature", 0)[0]
    capsys.readouterr()
    (third,) = TOKENIZER.encode(whole, add_special_tokens=False)[2:3]
    loaded = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():  # in place of the third token its end is the likeliest
        loaded.lm_head.weight[getattr(TOKENIZER, f"{end}_token_id")] = 10 * loaded.lm_head.weight[third]
    loaded.save_pretrained(model)
    (cut,) = write(model, "--mode", "instruct", "--prompt", PROMPT, "--temperature", 0)
    shown = capsys.readouterr().out
    assert cut != whole
    assert whole.startswith(cut)
    assert "<s>" not in shown + cut
    assert "</s>" not in shown + cut
    assert " ".join(shown.split()) == " ".join(f"story 1 {cut}".split())


def test_a_tokenizer_whose_bos_is_its_eos(tmp_path, given):
    """GPT-2's: one token opens and ends."""
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = None
    folder = save(tmp_path / "gpt2", "gpt2", tokenizer)
    body = TOKENIZER.encode(PROMPT, add_special_tokens=False)
    for mode in ("instruct", "chat", "completion"):
        write(folder, "--mode", mode, "--prompt", PROMPT)
    eos = TOKENIZER.eos_token_id
    assert [prompts[0] for prompts in given] == [[eos, *body, eos], [eos, *body, eos], [eos, *body]]


def test_a_tokenizer_whose_bos_is_its_eos_writes(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = None
    folder = save(tmp_path / "gpt2", "gpt2", tokenizer)
    assert write(folder, "--mode", "instruct", "--prompt", PROMPT, "--seed", 1)[0]


def test_one_story_is_streamed_and_is_the_first_of_several(model, capsys):
    (one,) = write(model, "--prompt", PROMPT, "--temperature", 1, "--seed", 3)
    streamed = capsys.readouterr().out
    three = write(model, "--prompt", PROMPT, "--temperature", 1, "--seed", 3, "--num_samples", 3)
    shown = capsys.readouterr().out
    assert three[0] == one
    assert len(set(three)) == 3
    assert shown.startswith(streamed)
    assert one.startswith(PROMPT)
    assert " ".join(one.split()) == " ".join(streamed.replace("story 1", "").split())
    assert write(model, "--prompt", PROMPT, "--temperature", 1, "--seed", 4) != [one]


def test_temperature_0_is_greedy_whatever_the_seed(model):
    greedy = write(model, "--prompt", PROMPT, "--temperature", 0)
    assert greedy == write(model, "--prompt", PROMPT, "--temperature", 0, "--seed", 9)
    assert greedy == write(model, "--prompt", PROMPT, "--temperature", 1, "--top_k", 1)
    assert greedy == write(model, "--prompt", PROMPT, "--temperature", 1, "--top_p", 1e-6)
    assert greedy != write(model, "--prompt", PROMPT, "--temperature", 1)


def test_what_is_written_beside_a_story_does_not_change_it():
    """Nor does the size of a batch, or the order; the control: another seed and other keys do."""
    model, prompts = tiny_model("llama", vocab_size=330), [[1, 40, 41], [1, 50], [1, 60, 61, 62]]
    options = {"max_new_tokens": 8, "temperature": 1.0}
    keys = ["a", "b", "c"]
    batches = [write_stories(model, TOKENIZER, prompts, batch_size=n, keys=keys, **options) for n in (1, 2, 16)]
    assert batches[0] == batches[1] == batches[2]
    for by_length in (False, True):
        turned = write_stories(model, TOKENIZER, prompts[::-1], keys=keys[::-1], by_length=by_length, **options)
        assert turned[::-1] == batches[0]
    numbered = [write_stories(model, TOKENIZER, prompts, batch_size=n, **options) for n in (1, 16)]
    assert numbered[0] == numbered[1] != batches[0]
    assert write_stories(model, TOKENIZER, prompts, keys=keys, seed=1, **options) != batches[0]


def test_each_story_has_its_own_limit():
    """The positions lower the limit of a batch; one limit for all that exceeds them is refused (`test_generation`)."""
    model, prompts = tiny_model("gpt2", vocab_size=330), [[1, 40, 41], [1] + [50] * 59]
    with torch.no_grad():  # no end is likely
        model.transformer.wte.weight[[1, 2]] = 0
    options = {"temperature": 0.0, "batch_size": 2}
    assert list(map(len, write_stories(model, TOKENIZER, prompts, [2, 3], **options))) == [2, 3]
    assert list(map(len, write_stories(model, TOKENIZER, prompts, [9, 9], **options))) == [4, 4]


@pytest.mark.parametrize(("top_k", "top_p", "left"), [(0, 1.0, 5), (3, 1.0, 3), (0, 0.7, 2)])
def test_draws_follow_the_distribution(top_k, top_p, left):
    logits_V = torch.tensor([2.0, 1.5, 1.0, 0.0, -1.0])
    count, temperature = 4000, 0.8
    warpers = own_draws(0, [str(n) for n in range(count)], temperature, top_k, top_p)
    scores_BV = logits_V.repeat(count, 1)
    for warper in warpers:
        scores_BV = warper(None, scores_BV)
    shares = np.bincount(scores_BV.argmax(dim=1), minlength=5) / count
    expected = torch.softmax(logits_V / temperature, dim=0).numpy()
    expected[left:] = 0
    assert shares == pytest.approx(expected / expected.sum(), abs=0.03)
    assert (shares[left:] == 0).all()


def byte_level():
    """A tokenizer of GPT-2's kind, whose tokens are bytes and runs of them."""
    backend = ByteLevelBPETokenizer()
    backend.train_from_iterator([TEXT] * 9, vocab_size=300, special_tokens=["<e>"], show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend._tokenizer, eos_token="<e>")


@pytest.mark.parametrize("tokenizer", [TOKENIZER, byte_level()], ids=["byte fallback", "byte level"])
def test_characters_of_several_tokens_are_shown_whole(tokenizer):
    out = io.StringIO()
    streamer = StoryStreamer(tokenizer, ends=[2], text=FoldedText(out, indent=0))
    ids = tokenizer.encode(" sat — Zoë ate", add_special_tokens=False)
    assert len(ids) > len(tokenizer.encode(" sat a Zoe ate", add_special_tokens=False))  # their bytes are spelled
    assert "\N{REPLACEMENT CHARACTER}" in tokenizer.decode(ids[: ids.index(tokenizer.encode("—")[-1])])
    streamer.put(torch.tensor([[1, 5]]))
    for token in [*ids, 2, 7]:
        streamer.put(torch.tensor([token]))
        assert "\N{REPLACEMENT CHARACTER}" not in out.getvalue()
    streamer.end()
    assert streamer.written == ids
    assert out.getvalue() == tokenizer.decode(ids).lstrip() + "\n"


@pytest.mark.parametrize("tokenizer", [TOKENIZER, byte_level()], ids=["byte fallback", "byte level"])
def test_what_is_shown_is_what_was_written_even_of_an_untrained_model(tokenizer):
    """Tokens drawn at random spell bytes that are no characters."""
    draws = np.random.default_rng(0)
    for _ in range(100):
        ids = draws.integers(3, 300, size=30).tolist()
        out = io.StringIO()
        streamer = StoryStreamer(tokenizer, before=ids[:5], text=FoldedText(out, width=10**6, indent=0))
        streamer.put(torch.tensor([[1]]))
        for token in ids[5:]:
            streamer.put(torch.tensor([token]))
        streamer.end()
        assert out.getvalue().split() == tokenizer.decode(ids).split()


def test_a_story_is_folded_between_words():
    text = "One day, a cat sat on a mat.\n\nThe quick brown fox jumps over the lazy dog! " * 3
    for size in (1, 7, len(text)):  # however it comes
        out = io.StringIO()
        folded = FoldedText(out, width=20, indent=2)
        for at in range(0, len(text), size):
            folded.write(text[at : at + size])
        folded.end()
        lines = out.getvalue().splitlines()
        assert max(map(len, lines)) <= 20
        assert out.getvalue().split() == text.split()
        assert all(line.startswith("  ") for line in lines if line)
        assert lines[2] == ""


def test_ctrl_c_leaves_what_was_written_and_no_traceback(model, monkeypatch, capsys):
    shown = StoryStreamer.put

    def put(self, value):
        shown(self, value)
        if len(self.written) == 3:
            raise KeyboardInterrupt

    whole = write(model, "--prompt", PROMPT)[0]
    capsys.readouterr()
    monkeypatch.setattr(StoryStreamer, "put", put)
    with pytest.raises(SystemExit) as left:
        write(model, "--prompt", PROMPT)
    captured = capsys.readouterr()
    assert left.value.code == 130
    assert captured.err.endswith("(stopped)\n")
    assert "Traceback" not in captured.err
    text = " ".join(captured.out.replace("story 1", "").split())
    assert text.startswith(PROMPT)
    assert " ".join(whole.split()).startswith(text)
    assert len(text) < len(whole)


def test_an_adapters_folder_is_a_model(model, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(model)
    adapted = add_lora(base, LoraSpec(r=2, target_modules=("q_proj", "v_proj")), seed=0)
    with torch.no_grad():
        for name, weights in adapted.named_parameters():
            if "lora_B" in name:
                weights.fill_(0.7)
    adapted.save_pretrained(tmp_path / "adapter")
    from_adapter = write(tmp_path / "adapter", "--mode", "instruct", "--prompt", PROMPT)
    assert from_adapter[0]
    assert from_adapter != write(model, "--mode", "instruct", "--prompt", PROMPT)


@pytest.mark.parametrize("flag", ["--load_in_8bit", "--load_in_4bit"])
def test_a_quantized_model_writes(flag, model):
    assert write(model, flag, "--prompt", PROMPT, "--use_cpu")[0].startswith(PROMPT)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mode", "instruct"], "--mode instruct: {model} needs an instruction; give --prompt, or --mode completion"),
        (["--mode", "chat", "--num_samples", "2"], "--num_samples 2: a conversation has one answer per turn"),
        (["--prompt", "cat " * 80], "leaves room for 0 within the 64 positions of {model}; give a shorter prompt\n"),
        (["--prompt", "cat", "--max_new_tokens", "64"], "give a shorter prompt or a smaller --max_new_tokens"),
        (["--num_samples", "0"], "--num_samples 0 must be"),
        (["--max_new_tokens", "0"], "--max_new_tokens 0 must be"),
        (["--temperature", "-1"], "--temperature -1 must be"),
        (["--top_k", "-1"], "--top_k -1 must be"),
        (["--top_p", "1.5"], "--top_p 1.5 must be"),
        (["--seed", "-1"], "--seed -1 must be"),
        (["--mode", "talk"], "invalid choice: 'talk'"),
        (["--load_in_8bit", "--load_in_4bit"], "--load_in_8bit and --load_in_4bit"),
    ],
)
def test_what_cannot_be_written_is_one_line(flags, message, model, capsys):
    with pytest.raises(SystemExit) as left:
        write(model, *flags)
    error = capsys.readouterr().err
    assert left.value.code == 2
    assert message.format(model=model) in error
    assert [line for line in error.splitlines() if "Loading" not in line][-1].startswith("error: ")


def test_a_model_without_a_chat_template_knows_no_conversations(tmp_path, capsys):
    tiny_model("llama", vocab_size=330).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(SystemExit) as left:
        write(tmp_path, "--mode", "chat", "--prompt", PROMPT)
    assert left.value.code == 2
    assert f"{tmp_path} has no chat template" in capsys.readouterr().err


@pytest.mark.parametrize(("end", "notes"), [("{{ eos_token }}", 0), ("\n", 1)])
def test_a_template_without_an_end_is_told(end, notes, tmp_path, capsys):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}END{% endfor %}".replace(
        "END", end
    )
    tokenizer.save_pretrained(tmp_path)
    tiny_model("llama", vocab_size=330).save_pretrained(tmp_path)
    write(tmp_path, "--mode", "chat", "--prompt", PROMPT, "--max_new_tokens", "3")
    assert capsys.readouterr().err.count("ends no answer with a token: answers end at EOS or --max_new_tokens") == notes


def test_another_models_tokenizer_is_refused(tmp_path, capsys):
    tiny_tokenizer().save_pretrained(tmp_path)
    tiny_model("llama", vocab_size=40).save_pretrained(tmp_path)
    with pytest.raises(SystemExit):
        write(tmp_path, "--prompt", PROMPT)
    assert "has 40 embeddings and the tokenizer's ids go up to 329" in capsys.readouterr().err
