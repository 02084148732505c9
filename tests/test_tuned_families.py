"""Fine-tuning of seven families through the commands: what each can do is exact, or refused in one line.

`docs/families.md` shows the result; `python tests/test_tuned_families.py` writes its table.
"""

import gc
import io
import json
import math
import re
import sys
from contextlib import redirect_stderr, redirect_stdout
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from killed_runs import Training, kill_and_go_on, outcome, stopped_after
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFT_DEFAULTS
from refusals import usage_error
from tiny_models import tiny_tokenizer
from tokenizers import AddedToken
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, GenerationConfig

import eval_checkpoint
import prepare_tinystories
import sft_lora
from lm_trials.commands import align
from lm_trials.evaluation import generate
from lm_trials.evaluation.conversation import Conversation
from lm_trials.evaluation.sampling import Sampling
from lm_trials.evaluation.storytellers import open_storyteller
from lm_trials.models.adapters import adapted_layers
from lm_trials.models.reference import load_model, resolve_model
from lm_trials.models.shapes import build_config, build_model
from lm_trials.pairs.examples import ExampleStore
from lm_trials.pairs.layouts import chat_example, completion_prompts, turn_end
from lm_trials.pairs.pairs import open_pairs
from lm_trials.tokens.tokenizers import load_tokenizer
from lm_trials.training.data_order import open_order
from lm_trials.training.fine_tuning import check_tunable
from lm_trials.training.initial import InitialModel
from lm_trials.training.tuning_examples import row_order

PAGE = Path(__file__).resolve().parents[1] / "docs" / "families.md"


class Family(NamedTuple):
    """A family: what is its own in a tiny model, its special tokens, and a chat template in its style."""

    shape: dict
    template: str
    tokens: dict
    more: tuple = ()  # tokens of the template beside these
    ends: tuple = ()  # of generation_config.json


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATML_TOKENS = ("<|im_start|>", "<|im_end|>", "<think>", "</think>")
ONE = "<|endoftext|>"  # for BOS and EOS
FAMILIES = {
    # Norms on queries and keys; no BOS; the chat model ends with two tokens; thoughts before each answer.
    "qwen3": Family(
        {"tie_word_embeddings": True},
        CHATML,
        {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": ONE},
        (ONE, *CHATML_TOKENS),
        ("<|im_end|>", ONE),
    ),
    # A window in every other layer, norms before and behind, tied embeddings, capped logits; a turn ends with a token
    # that is not EOS, and that the pretrained model's generation_config.json does not name.
    "gemma3_text": Family(
        {
            "layer_types": ["sliding_attention", "full_attention"],
            "sliding_window": 8,
            "tie_word_embeddings": True,
            "final_logit_softcapping": 8.0,
        },
        "{{ bos_token }}{% for m in messages %}"
        "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
        "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
        "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"},
        ("<start_of_turn>", "<end_of_turn>"),
    ),
    # Layers without rotations; no BOS, and EOS for padding.
    "smollm3": Family(
        {"no_rope_layers": [1, 0], "tie_word_embeddings": True},
        "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% endif %}"
        "<|im_start|>system\n{{ system or 'Reasoning Mode: /no_think' }}<|im_end|>\n" + CHATML,
        {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"},
        (ONE, *CHATML_TOKENS),
    ),
    # Norms behind attention and MLP alone; roles that are words, not tokens.
    "olmo2": Family(
        {},
        "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}"
        "{{ eos_token if m.role == 'assistant' }}"
        "{{ '\\n' if m.role == 'user' or not loop.last }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        {"bos_token": ONE, "eos_token": ONE, "pad_token": "<|pad|>"},
    ),
    # Attention and MLP side by side, rotations of half a head; one token for all roles.
    "phi": Family(
        {"partial_rotary_factor": 0.5},
        "{% for m in messages %}{% if m.role == 'user' %}Instruct: {{ m.content }}\nOutput:{% else %} {{ m.content }}"
        "{{ eos_token }}{% endif %}{% endfor %}",
        {"bos_token": ONE, "eos_token": ONE, "unk_token": ONE, "pad_token": None},
    ),
    # Queries, keys and values in one layer, rotations of a quarter of a head; EOS ends the questions too.
    "gpt_neox": Family(
        {"rotary_pct": 0.25},
        "{% for m in messages %}<|{{ 'prompter' if m.role == 'user' else m.role }}|>{{ m.content }}{{ eos_token }}"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}",
        {"bos_token": ONE, "eos_token": ONE, "unk_token": ONE, "pad_token": "<|padding|>"},
        ("<|prompter|>", "<|assistant|>"),
    ),
    # A window in all layers; grouped queries; a template without an opening of an answer.
    "mistral": Family(
        {"sliding_window": 8, "num_key_value_heads": 1},
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": None},
        ("[INST]", "[/INST]"),
    ),
}
SHAPE = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 1024, "initializer_range": 0.2,
}  # fmt: skip
UNEVALUATED = ("--do_eval", "False")
ANSWER = "The cat sat on a mat."
TURNS = 2


def turns(number):
    """Return a conversation in which each question has the same answer."""
    asked = {"role": "user", "content": f"Hi {number}"}
    return [asked, {"role": "assistant", "content": ANSWER}] * TURNS


def make_base(kind, folder):
    """Save a random model of a family with its tokenizer, as a chat model of the Hub is saved."""
    family, tokenizer = FAMILIES[kind], tiny_tokenizer()
    words = [token for token in family.more if "think" in token]
    special = {*filter(None, family.tokens.values()), *family.more} - {*words, *tokenizer.all_special_tokens}
    tokenizer.add_special_tokens({"additional_special_tokens": sorted(special)})
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in words])
    for role, token in {"unk_token": None, **family.tokens}.items():
        setattr(tokenizer, role, token)
    tokenizer.chat_template = family.template
    ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad")}
    base = AutoConfig.for_model(kind)
    known = {name: value for name, value in SHAPE.items() if hasattr(base, name)}
    model = build_model(AutoConfig.for_model(kind, **known | family.shape | ids, vocab_size=len(tokenizer)), seed=0)
    ends = tokenizer.convert_tokens_to_ids(list(family.ends)) or tokenizer.eos_token_id
    model.generation_config = GenerationConfig(bos_token_id=tokenizer.bos_token_id, eos_token_id=ends)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


class Bench:
    """A base of one family in a folder, conversations of which each answer is the same, and the runs made of them."""

    def __init__(self, kind, folder):
        self.kind, self.folder, self.base = kind, folder, folder / kind
        make_base(kind, self.base)
        rows = [json.dumps({"messages": turns(number)}) + "\n" for number in range(60)]
        (folder / "talk.jsonl").write_text("".join(rows))

    def flags(self, name, *more):
        given = {
            "model_name_or_path": self.base, "dataset_name": self.folder / "talk.jsonl", "lora_r": 2,
            "data_cache_dir": self.folder / "data", "max_length": 256,
            "per_device_train_batch_size": 4, "max_steps": 2, "learning_rate": 1e-2, "logging_steps": 1,
            "save_strategy": "no", "report_to": "none", "output_dir": self.folder / name,
        }  # fmt: skip
        return [word for key, value in given.items() for word in (f"--{key}", str(value))] + [*map(str, more)]

    def tune(self, name, *more):
        """Fine-tune as the command does; returns the folder of the run and its metrics."""
        held_out = () if "--dataset_name" in more else ("--validation_split_percentage", 20)
        metrics = sft_lora.main(self.flags(name, *held_out, *more))
        return self.folder / name, metrics

    def store(self, run, split):
        data = json.loads((run / "run.json").read_text())["outcome"]["data"]
        return ExampleStore(self.folder / "data" / data["name"] / data["examples"], split)

    @cached_property
    def full(self):
        """All weights, until the answer is known by heart."""
        saved = ("--save_strategy", "steps", "--save_steps", 40, "--logging_steps", 3, "--logging_first_step", "True")
        return self.tune("full", "--full_finetune", "True", "--max_steps", 50, *saved)

    @cached_property
    def lora(self):
        """Adapters on PEFT's layers of the family, else on all, merged too."""
        layers = "default" if self.kind in PEFT_DEFAULTS else "all-linear"
        merged = ("--max_steps", 4, "--merge_output", self.folder / "merged")
        return self.tune("lora", "--lora_target_modules", layers, *merged)


@torch.no_grad()
def nats(model, ids, counted):
    """Return the nats of the counted tokens of one text by itself."""
    ids_T, counted_T = torch.as_tensor(ids), torch.as_tensor(counted)[1:] == 1
    log_probs_TV = model(input_ids=ids_T[None], use_cache=False).logits[0, :-1].double().log_softmax(-1)
    return -log_probs_TV.gather(-1, ids_T[1:, None])[counted_T].sum().item(), int(counted_T.sum())


def exact_loss(model, examples):
    """Return the loss over the answers of examples, each by itself: a sum over tokens."""
    sums, counts = zip(*(nats(model, *example) for example in examples), strict=True)
    return sum(sums) / sum(counts)


def answers_of(store, numbers):
    return [(store.input_ids(int(number)), store.completion_mask(int(number))) for number in numbers]


def first_loss(run):
    return json.loads((run / "trainer_state.json").read_text())["log_history"][0]["loss"]


def load(folder):
    return load_model(resolve_model(str(folder)))


def ends_named(model):
    """Return the tokens at which transformers ends what the model writes."""
    named = model.generation_config.eos_token_id
    return named if isinstance(named, list) else [named]


def learns(bench):
    """Full fine-tuning: the first loss and the last evaluation by hand; every weight changes."""
    run, metrics = bench.full
    train, validation = (bench.store(run, split) for split in ("train", "validation"))
    base, tuned = load(bench.base), load(run)
    first = answers_of(train, row_order(len(train), 4, data_seed=42))
    assert first_loss(run) == pytest.approx(exact_loss(base, first), abs=1e-5)
    everything = answers_of(validation, range(len(validation)))
    assert metrics["eval_completion_loss"] == pytest.approx(exact_loss(tuned, everything), abs=1e-5)
    assert metrics["eval_completion_loss"] < 0.3 < exact_loss(base, everything)
    before, after = base.state_dict(), tuned.state_dict()
    assert [name for name, tensor in before.items() if torch.equal(tensor, after[name])] == []
    assert tuned.config.tie_word_embeddings == base.config.tie_word_embeddings


def adapts(bench):
    """LoRA on all linear layers but the head: the first loss by hand, and every adapter is trained."""
    run, _ = bench.tune("first", "--max_steps", 1, *UNEVALUATED)
    base, adapted, store = load(bench.base), load(run), bench.store(run, "train")
    expected = exact_loss(base, answers_of(store, row_order(len(store), 4, data_seed=42)))
    assert first_loss(run) == pytest.approx(expected, abs=1e-5)
    head = base.get_output_embeddings()
    linear = {name for name, module in base.named_modules() if isinstance(module, torch.nn.Linear)}
    layers = adapted_layers(adapted.get_base_model())
    assert set(layers) == {name for name in linear if base.get_submodule(name) is not head}
    assert all(layer.lora_B["default"].weight.abs().max() > 0 for layer in layers.values())


def adapts_own_layers(bench):
    """LoRA on the layers that PEFT names for the family, which are then those of `run.json`; the last loss by hand."""
    if bench.kind not in PEFT_DEFAULTS:
        bench.tune("refused", "--lora_target_modules", "default")
    run, metrics = bench.lora
    adapted, store = load(run), bench.store(run, "validation")
    names = json.loads((run / "run.json").read_text())["outcome"]["lora_target_modules"]
    assert names == PEFT_DEFAULTS[bench.kind]
    assert {name.rpartition(".")[2] for name in adapted_layers(adapted)} == set(names)
    expected = exact_loss(adapted, answers_of(store, range(len(store))))
    assert metrics["eval_completion_loss"] == pytest.approx(expected, abs=1e-5)
    return " ".join(names)


def adapts_8_bit(bench):
    """LoRA on an 8-bit base: each adapted layer is quantized, and the first loss is nearly that of the base."""
    run, _ = bench.tune("8bit", "--load_in_8bit", "True", "--max_steps", 1, "--merge_output", bench.folder / "merged8")
    store = bench.store(run, "train")
    expected = exact_loss(load(bench.base), answers_of(store, row_order(len(store), 4, data_seed=42)))
    assert 0 < abs(first_loss(run) - expected) < 0.05
    quantized = load_model(resolve_model(str(bench.base)), quantization_config=BitsAndBytesConfig(load_in_8bit=True))
    kinds = {name: type(module).__name__ for name, module in quantized.named_modules()}
    assert {kinds[name] for name in adapted_layers(load(run).get_base_model())} == {"Linear8bitLt"}
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(bench.folder / "merged8").eval()(IDS).logits
        assert torch.allclose(merged, load(run)(IDS).logits, atol=1e-4)
    return "close"


def merges(bench):
    """The merged model, by transformers alone, is the adapter on its base, with embeddings tied as they were."""
    run, _ = bench.lora
    base, merged, ids = load(bench.base), AutoModelForCausalLM.from_pretrained(bench.folder / "merged").eval(), IDS
    with torch.no_grad():
        expected = load(run)(ids, use_cache=False).logits
        assert torch.allclose(merged(ids, use_cache=False).logits, expected, atol=1e-4)
        assert (base(ids, use_cache=False).logits - expected).abs().max() > 1e-2
    assert turn_end(load_tokenizer(str(run))) in ends_named(merged)
    tied = [model.get_output_embeddings().weight is model.get_input_embeddings().weight for model in (base, merged)]
    assert tied == [bool(base.config.tie_word_embeddings)] * 2


def chats(bench):
    """Every turn is asked as it was trained, the answer is the one that was trained, and it ends by its last token."""
    run, _ = bench.full
    teller = open_storyteller(str(run))
    talk = Conversation(teller, Sampling(temperature=0.0), 60, io.StringIO())
    trained, mask = chat_example(teller.tokenizer, turns(3))
    stored = [bench.store(run, split) for split in ("train", "validation")]
    assert trained in [store.input_ids(number).tolist() for store in stored for number in range(len(store))]
    for question in turns(3)[::2]:
        asked = teller.conversation([*talk.messages, question])
        (written,) = teller.write([asked], ["answer"], 60, Sampling(temperature=0.0))
        talk.answer(question["content"])
        end = len(asked) + len(written)
        assert trained[:end] == asked + written
        assert trained[end] == turn_end(teller.tokenizer)
        assert mask[len(asked) - 1 : end + 1] == [0] + [1] * (len(written) + 1)
    assert [message["content"] for message in talk.messages[1::2]] == [ANSWER] * TURNS
    assert turn_end(teller.tokenizer) in ends_named(AutoModelForCausalLM.from_pretrained(run))


def generates(bench):
    """A chat's answer and a text's continuation, longer than a window, are the likeliest tokens without a cache."""
    run, _ = bench.full
    (answer,) = generate.main(["--model", str(run), "--prompt", "Hi 3", "--temperature", "0"])
    assert answer.endswith(ANSWER)
    model, tokenizer = load(bench.folder / "lora"), load_tokenizer(str(bench.base))
    flags = ("--mode", "completion", "--prompt", "The cat", "--max_new_tokens", "20", "--temperature", "0")
    (text,) = generate.main(["--model", str(bench.lora[0]), *flags])
    (ids,) = completion_prompts(tokenizer, ["The cat"])
    start = len(ids) - len(tokenizer.encode("The cat", add_special_tokens=False))
    with torch.no_grad():
        for _ in range(20):
            ids = [*ids, int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())]
    assert text == tokenizer.decode(ids[start:])


def evaluates(bench):
    """The losses of texts longer than a window, under the tuned models, by hand."""
    (bench.folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    runs = [str(run) for run in (bench.full[0], bench.lora[0], bench.folder / "merged")]
    flags = ("--dataset_name", str(bench.folder / "texts.jsonl"), "--data_cache_dir", str(bench.folder / "data"))
    rows = eval_checkpoint.main(["--model_name_or_path", *runs, *flags, "--matrix_dir", str(bench.folder / "matrix")])
    found = [row["estimate"] for row in rows if row["metric"] == "loss" and row["slice"] == "all"]
    texts = completion_prompts(load_tokenizer(str(bench.base)), TEXTS)
    assert found == [pytest.approx(exact_loss(load(run), [(ids, [1] * len(ids)) for ids in texts])) for run in runs]
    assert found[0] != pytest.approx(found[1], abs=1e-3)


def resumes(bench):
    """Stopped after a checkpoint between two log lines, a run of all weights ends with the same bits."""
    run, _ = bench.full
    straight = outcome(run)
    stopped_after(run, 40)
    del bench.full
    assert outcome(bench.full[0]) == straight


def packs(bench):
    """Examples joined in a row or a batch, each longer than a window: the loss is that of each by itself."""
    base = load(bench.base)
    for flag in ("packing", "padding_free"):
        run, _ = bench.tune(flag, f"--{flag}", "True", "--max_steps", 1, *UNEVALUATED)
        store = bench.store(run, "train")
        numbers = [part.document for part in open_order(run).parts_of(1)]
        assert len(numbers) > 4 or flag == "padding_free"
        assert first_loss(run) == pytest.approx(exact_loss(base, answers_of(store, numbers)), abs=1e-5)


def prefers(bench):
    """DPO of an adapter: the first loss is that of no difference, and the last evaluation is equation 7 by hand."""
    file = bench.folder / "preferences.jsonl"
    rows = [
        {"prompt": turns(number)[:1], **{side: [answer(number, side)] for side in ("chosen", "rejected")}}
        for number in range(40)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = bench.flags("dpo", "--method", "dpo", "--max_steps", 3, "--validation_split_percentage", 20)
    metrics = align.main([*argv, "--dataset_name", str(file), "--beta", "0.5"])
    run = bench.folder / "dpo"
    assert first_loss(run) == pytest.approx(math.log(2), abs=1e-6)
    data = json.loads((run / "run.json").read_text())["outcome"]["data"]["name"]
    kept = open_pairs(data, bench.folder / "data").splits["validation"]
    tokenizer, models = load_tokenizer(str(bench.base)), (load(run), load(bench.base))
    losses = []
    for row in kept:
        sides = [chat_example(tokenizer, [*row["prompt"], *row[side]], 1) for side in ("rejected", "chosen")]
        (by_model, by_base) = (nats(model, *sides[0])[0] - nats(model, *sides[1])[0] for model in models)
        losses.append(math.log1p(math.exp(-0.5 * (by_model - by_base))))
    assert metrics["eval_loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-5)
    assert metrics["eval_loss"] < 0.68 < first_loss(run)


def answer(number, side):
    """Return the answer of a preference: the one of every conversation, or another."""
    return {"role": "assistant", "content": ANSWER if side == "chosen" else f"The dog {number}"}


IDS = torch.arange(3, 40)[None]
TEXTS = [f"One day, a cat sat on a mat. The quick brown fox jumps over {n} dogs!" for n in range(6)]
COLUMNS = {
    "SFT": learns,
    "LoRA": adapts,
    "PEFT's layers": adapts_own_layers,
    "8-bit": adapts_8_bit,
    "merge": merges,
    "chat": chats,
    "generate": generates,
    "evaluate": evaluates,
    "resume": resumes,
    "packing": packs,
    "DPO": prefers,
}
ALWAYS = ("gemma3_text", "gpt_neox")  # with every column by default; the others with LoRA alone
REASON = re.compile(r"^error: (.*?);", re.MULTILINE)


def cell(bench, column):
    """What a column returns, by default `exact`, or why a command is refused, in which the family is called TYPE."""
    shown, status = io.StringIO(), 0
    with redirect_stdout(shown), redirect_stderr(shown):
        try:
            return COLUMNS[column](bench) or "exact"
        except SystemExit as stop:
            status = stop.code
    (reason,) = REASON.findall(shown.getvalue())
    assert status == 2
    assert not (bench.folder / "refused").exists()
    return f"refused: {reason.replace(bench.kind, 'TYPE')}"


def read_page():
    """The table of the page: the cells of each family, with the reasons that its letters stand for."""
    text = PAGE.read_text(encoding="utf-8").partition(HEAD)[2].partition("\n## ")[0]
    reasons = {f"refused ({letter})": f"refused: {reason}" for letter, reason in re.findall(r"\((.)\) `(.*)`", text)}
    rows = re.findall(r"^\| `(\S+)` \| (.*) \|$", text, re.MULTILINE)
    return {
        kind: dict(zip(COLUMNS, (reasons.get(found, found) for found in cells.split(" | ")), strict=True))
        for kind, cells in rows
    }


@pytest.fixture(scope="module", autouse=True)
def small_heap():
    """Keep the libraries' objects out of garbage collections, of which each training makes one of 0.3 s."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


FULL = [pytest.param(kind, marks=[pytest.mark.slow] * (kind not in ALWAYS)) for kind in FAMILIES]


@pytest.mark.parametrize("kind", FULL)
def test_every_family_does_what_the_page_says(kind, tmp_path):
    bench = Bench(kind, tmp_path)
    assert {column: cell(bench, column) for column in COLUMNS} == read_page()[kind]


@pytest.mark.parametrize("kind", [kind for kind in FAMILIES if kind not in ALWAYS])
def test_an_adapter_is_trained_on_every_family(kind, tmp_path):
    bench = Bench(kind, tmp_path)
    assert cell(bench, "LoRA") == read_page()[kind]["LoRA"] == "exact"


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAMILIES)
def test_a_killed_run_ends_with_the_same_bits(kind, tmp_path):
    bench = Bench(kind, tmp_path)
    saved = ("--save_strategy", "steps", "--save_steps", 2, "--max_steps", 8, "--logging_steps", 3)
    saved = (*saved, "--validation_split_percentage", 20)
    argv, folder = bench.flags("run", *saved, "--full_finetune", "True"), tmp_path / "run"
    Training(argv, folder, function="tune").finish()
    straight = outcome(folder)
    assert kill_and_go_on(argv, folder, 0, after=folder / "checkpoint-4", function="tune")
    assert outcome(folder) == straight


@pytest.fixture(scope="module")
def prepared(tiny_data):
    """The name of conversations of three turns, a story, its summary and its words."""
    data = ("--corpus", "tiny", "--vocab_size", "400", "--max_length", "512", "--data_cache_dir", str(tiny_data))
    prepare_tinystories.main(["instruct", *data, "--conversational", "True", "--turns", "3", "--dataset_name", "chat"])
    return "chat"


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAMILIES)
def test_prepared_conversations_are_trained_and_asked_as_they_are(kind, prepared, tiny_data, tmp_path):
    """Stories with quotes and line ends: each question of a conversation is a beginning of the example in training."""
    bench = Bench(kind, tmp_path)
    more = ("--dataset_name", prepared, "--data_cache_dir", tiny_data, "--max_length", 1024, "--max_steps", 1)
    run, _ = bench.tune("run", *more)
    data = json.loads((run / "run.json").read_text())["outcome"]["data"]
    store = ExampleStore(tiny_data / data["name"] / data["examples"], "train")
    rows = open_pairs(prepared, tiny_data).splits["train"]
    numbers = row_order(len(store), 4, data_seed=42)
    assert first_loss(run) == pytest.approx(exact_loss(load(bench.base), answers_of(store, numbers)), abs=1e-5)
    teller = open_storyteller(str(run))
    asked = 0
    places = {row["record_id"]: row["messages"] for row in rows}
    for number in numbers.tolist():
        messages = places[store.record_id(number)]
        for length in range(1, len(messages), 2):
            prompt, mask = teller.conversation(messages[:length]), store.completion_mask(number)
            assert store.input_ids(number)[: len(prompt)].tolist() == prompt
            assert (mask[len(prompt) - 1], mask[len(prompt)]) == (0, 1)
            asked += 1
    assert asked > 4


@pytest.mark.parametrize(
    ("kind", "overrides", "reason"),
    [
        ("recurrent_gemma", ",num_hidden_layers=3,w_init_variance_scale=1.0,logits_soft_cap=0.02", r"[\d.]+ nats"),
        ("llama4_text", ",num_hidden_layers=2,num_local_experts=2,intermediate_size_mlp=16", ".* no attribute .*"),
        ("gemma3_text", ",num_hidden_layers=2,final_logit_softcapping=0.02", None),
    ],
)
def test_a_loss_that_trl_computes_otherwise_is_refused(kind, overrides, reason):
    shape = f"hidden_size=16,num_attention_heads=2{overrides}"
    tokens = {"vocab_size": 64, "block_size": 32, "bos_token_id": 1, "eos_token_id": 2}
    model = build_model(build_config(kind, None, shape, **tokens), seed=0)
    base = InitialModel(model.config, tiny_tokenizer(), SimpleNamespace(name="x"))
    args = SimpleNamespace(device=torch.device("cpu"), packing=False, padding_free=False)
    forward = model.forward
    if reason is None:
        check_tunable(model, base, args)
    else:
        line = usage_error(check_tunable, model, base, args)
        assert re.match(rf"x: the loss of trl is not that of a {kind} \({reason}\), so it cannot be fine-tuned", line)
    assert model.forward == forward


def test_the_page_has_every_family_and_what_is_refused():
    page = read_page()
    assert list(page) == list(FAMILIES)
    assert page["mistral"]["PEFT's layers"] == "q_proj v_proj"
    assert page["olmo2"]["PEFT's layers"].startswith("refused: --lora_target_modules default: PEFT has no default")


def main():
    """Write the table of the page."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(HEAD)
    lines, letters = [HEAD + "| --- " * (len(COLUMNS) + 1) + "|"], {}
    for kind in FAMILIES:
        with TemporaryDirectory() as folder:
            bench = Bench(kind, Path(folder))
            cells = [cell(bench, column) for column in COLUMNS]
        for reason in [found for found in cells if found.startswith("refused: ")]:
            letters.setdefault(reason, f"refused ({'abcdefgh'[len(letters)]})")
        lines.append(f"| `{kind}` | {' | '.join(letters.get(found, found) for found in cells)} |")
        print(lines[-1], file=sys.stderr)
    reasons = [f"({shown[-2]}) `{reason.removeprefix('refused: ')}`" for reason, shown in letters.items()]
    after = "## " + rest.partition("\n## ")[2]
    PAGE.write_text(before + "\n".join([*lines, "", *reasons, "", after]), encoding="utf-8")


HEAD = f"| family | {' | '.join(COLUMNS)} |\n"


if __name__ == "__main__":
    main()
