"""llama2.c's files: what is read, written and refused; logits against a computation as llama2.c does it."""

import os
import shutil
import struct
import subprocess
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llama2c_models import as_llama2c_does, checkpoint, llama, logits, lora_checkpoint, same_weights, written
from refusals import usage_error
from tiny_models import tiny_tokenizer
from transformers import LlamaForCausalLM

from lm_trials.models.llama2c_files import (
    build_llama,
    check_llama,
    from_llama,
    quantize,
    read_llama2c,
    tokenizer_bytes,
)
from lm_trials.tokens.tokenizers import load_tokenizer


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(
    groups=st.sampled_from([(1, 1), (2, 1), (2, 2), (4, 1), (4, 2), (6, 3)]),
    half_head=st.integers(1, 4),
    hidden=st.integers(1, 40),
    layers=st.integers(1, 3),
    vocab_size=st.integers(2, 50),
    tied=st.booleans(),
    version=st.sampled_from([0, 1]),
)
def test_what_is_written_is_read_bit_for_bit(
    tmp_path_factory, groups, half_head, hidden, layers, vocab_size, tied, version
):
    heads, kv_heads = groups
    model = llama(heads, kv_heads, tied, 0, vocab_size, hidden, 2 * half_head * heads, layers)
    path = written(model, tmp_path_factory.mktemp("bin") / "m.bin", version)
    found = read_llama2c(path)
    again = build_llama(found, 1, 2)
    assert same_weights(again, model)
    assert again.config.tie_word_embeddings == tied
    assert path.read_bytes() == written(again, path.with_name("again.bin"), version).read_bytes()
    name = "model.layers.0.self_attn.k_proj.weight"
    torch.nn.init.zeros_(again.get_parameter(name))
    assert not same_weights(again, model)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_logits_are_those_of_llama2c(tied, kv_heads):
    model = llama(4, kv_heads, tied)
    found = from_llama(model)
    torch.testing.assert_close(as_llama2c_does(found).float(), logits(model), atol=1e-4, rtol=1e-4)
    # Without the permutation the same weights are another model.
    name = "layers.0.attention.wq"
    found.tensors[f"{name}.weight"] = model.model.layers[0].self_attn.q_proj.weight.detach()
    assert (as_llama2c_does(found) - logits(model)).abs().max() > 0.01


def test_int8_is_q8_0_and_reads_as_what_it_stands_for(tmp_path):
    model = llama(dim=16, hidden=24)
    found = read_llama2c(path := written(model, tmp_path / "m.bin", 2))
    (group,) = struct.unpack_from("<i", path.read_bytes(), 37)
    assert group == 8  # divides both widths
    weight = from_llama(model).tensors["layers.1.feed_forward.w2.weight"].numpy()
    groups = weight.reshape(-1, group)
    scales = np.abs(groups).max(1, keepdims=True) / np.float32(127)
    expected = (np.rint(groups / scales) * scales).reshape(weight.shape)
    assert np.array_equal(found.tensors["layers.1.feed_forward.w2.weight"].numpy(), expected)
    assert not np.array_equal(expected, weight)
    assert torch.equal(found.tensors["norm.weight"], model.model.norm.weight)  # vectors stay float32
    assert "int8" in found.notes[0]
    numbers, scales = quantize(torch.zeros(2, 4), 4)
    assert not numbers.any()
    assert not scales.any()


@pytest.mark.parametrize("tied", [True, False])
def test_checkpoints_are_read_by_their_keys(tmp_path, tied):
    model, path = llama(tied=tied), tmp_path / "ckpt.pt"
    # Keys of llama2_prebias, and weights beside the model of tinystories-wrappers.
    saved = checkpoint(model, path, batch_indices_trained=[(1, 2)], last_attn_weights=[torch.ones(1, 4, 2, 2)])
    saved["model"]["_orig_mod.probes.0.weight"] = torch.ones(6, 16)
    torch.save(saved, path)
    found = read_llama2c(path)
    assert same_weights(build_llama(found, 1, 2), model)
    assert found.notes == ["1 weights of its probes and lenses are left out"]
    saved["model"]["_orig_mod.layers.0.attention.wq.bias"] = torch.ones(16)
    torch.save(saved, path)
    assert "for example layers.0.attention.wq.bias" in usage_error(read_llama2c, path)
    del saved["model"]["_orig_mod.layers.0.attention.wq.bias"], saved["model"]["_orig_mod.layers.1.attention.wv.weight"]
    torch.save(saved, path)
    assert "for example layers.1.attention.wv.weight" in usage_error(read_llama2c, path)


@pytest.mark.parametrize(("named", "alpha"), [(2, 1.0), (4, 3.0)])
def test_the_rank_of_lora_is_that_of_its_matrices(tmp_path, monkeypatch, named, alpha):
    found = read_llama2c(lora_checkpoint(llama(), tmp_path / "ckpt.pt", 4, named, monkeypatch))
    assert (found.lora.rank, found.lora.alpha, found.lora.dropout) == (4, alpha, 0.0 if named == 2 else 0.1)
    assert ("rank 4, not the 2" in " ".join(found.notes)) == (named == 2)
    assert same_weights(build_llama(found, 1, 2), llama())


def test_a_checkpoint_runs_no_code(tmp_path):
    torch.save({"model": {}, "model_args": os.getcwd}, tmp_path / "ckpt.pt")
    assert "cannot be read as a checkpoint of tensors" in usage_error(read_llama2c, tmp_path / "ckpt.pt")
    for saved in ([1], {"model": {}}, {"model": {}, "model_args": {"n_head": 2}}):
        torch.save(saved, tmp_path / "ckpt.pt")
        assert "is no llama2.c checkpoint" in usage_error(read_llama2c, tmp_path / "ckpt.pt")


@pytest.mark.parametrize("version", [0, 1, 2])
def test_damaged_files_are_refused(tmp_path, version):
    path = written(llama(), tmp_path / "m.bin", version)
    whole = path.read_bytes()
    for data in (whole[:-1], whole + b"\0", whole[:300]):
        path.write_bytes(data)
        assert f"has {len(data):,} bytes instead of" in usage_error(read_llama2c, path)
    for data in (b"", b"GGUF" + bytes(100), b'{"config": "of something else"}' * 9):
        path.write_bytes(data)
        assert "m.bin" in usage_error(read_llama2c, path)
    path.write_bytes(struct.pack("<Ii", 0x616B3432, 3) + bytes(300))
    assert "version 3" in usage_error(read_llama2c, path)
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    assert "cannot be read as a checkpoint" in usage_error(read_llama2c, path)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("hidden_act", "gelu"),
        ("attention_bias", True),
        ("mlp_bias", True),
        ("rms_norm_eps", 1e-6),
        ("head_dim", 8),
        ("rope_theta", 5e5),
        ("rope_type", "linear"),
    ],
)
def test_what_run_c_cannot_have_is_refused(setting, value):
    config = llama().config
    check_llama(config, "model")
    if setting.startswith("rope"):
        config.rope_parameters = config.rope_parameters | {setting: value}
    else:
        setattr(config, setting, value)
    assert f"model has {setting} {value}" in usage_error(check_llama, config, "model")


def test_the_tokenizer_must_be_one_that_run_c_reads():
    tokenizer = tiny_tokenizer()
    data = tokenizer_bytes(tokenizer, len(tokenizer), "model")
    at, entries = 4, []
    while at < len(data):
        score, length = struct.unpack_from("<fI", data, at)
        entries.append((data[at + 8 : at + 8 + length].decode(), score))
        at += 8 + length
    texts = [text for text, _ in entries]
    assert len(entries) == len(tokenizer)
    assert texts[:4] == ["<unk>", "\n<s>\n", "\n</s>\n", "<0x00>"]
    assert struct.unpack_from("<I", data)[0] == max(len(text.encode()) for text in texts)
    # run.c's rule: of all neighbours that are a token together, the pair with the highest score is joined first.
    scores, found = dict(entries), list(" One day, a cat sat")
    while pairs := [(scores[a + b], -n) for n, (a, b) in enumerate(pairwise(found)) if a + b in scores]:
        place = -max(pairs)[1]
        found[place : place + 2] = ["".join(found[place : place + 2])]
    assert [texts.index(text) for text in found] == tokenizer.encode("One day, a cat sat", add_special_tokens=False)
    assert len(found) < 10
    assert "run.c needs as many" in usage_error(tokenizer_bytes, tokenizer, len(tokenizer) + 1, "model")
    tokenizer.bos_token = "</s>"
    assert "BOS as token 1" in usage_error(tokenizer_bytes, tokenizer, len(tokenizer), "model")


def greedy(model, steps):
    ids = [1]
    while len(ids) <= steps and (following := int(logits(model, ids)[-1].argmax())) != 1:
        ids.append(following)
    return ids[1:]


def test_stories260k_is_written_as_it_was_read(shared_data, tmp_path):
    folder = shared_data / "stories260K"
    model = build_llama(read_llama2c(folder / "stories260K.bin"), 1, 2)
    assert written(model, tmp_path / "m.bin", 0).read_bytes() == (folder / "stories260K.bin").read_bytes()
    tokenizer = load_tokenizer(folder / "tok512.model")
    assert tokenizer_bytes(tokenizer, 512, "model") == (folder / "tok512.bin").read_bytes()
    assert same_weights(model, LlamaForCausalLM.from_pretrained(folder / "hf", local_files_only=True))
    assert tokenizer.decode(greedy(model, 20)).startswith("Once upon a time, there was a little girl named Lily")
    int8 = build_llama(read_llama2c(written(model, tmp_path / "int8.bin", 2)), 1, 2)
    assert greedy(int8, 8) == greedy(model, 8)
    assert not same_weights(int8, model)


@pytest.mark.slow
def test_greedy_tokens_are_those_of_run_c(tmp_path):
    """`LLAMA2C_RUN` names llama2.c's run.c."""
    source, compiler = os.environ.get("LLAMA2C_RUN"), shutil.which("cc") or shutil.which("gcc")
    if not source or not compiler:
        pytest.skip("not compared with run.c: it needs a C compiler, and LLAMA2C_RUN=PATH/run.c")
    subprocess.run([compiler, "-O2", "-o", tmp_path / "run", source, "-lm"], check=True)
    # A tokenizer whose tokens spell their numbers, so that run.c prints ids.
    spelled = [f" {number}".encode() for number in range(40)]
    ids = struct.pack("<I", 3) + b"".join(struct.pack("<fI", 0.0, len(text)) + text for text in spelled)
    (tmp_path / "ids.bin").write_bytes(ids)
    said = []
    for seed, (kv_heads, tied) in enumerate([(4, True), (2, False), (1, True)]):
        model = llama(4, kv_heads, tied, seed)
        written(model, tmp_path / "m.bin", 0)
        command = [tmp_path / "run", tmp_path / "m.bin", "-z", tmp_path / "ids.bin", "-t", "0", "-n", "20"]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        said.append(list(map(int, printed.split())))
        assert said[-1] == greedy(model, 20)
    assert said[0] != said[1] != said[2]
