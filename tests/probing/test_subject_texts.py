"""What probes read: each text once, no more than all layers see; a control in another type is the same model."""

import json
from dataclasses import asdict

import pytest
import torch
from tiny_models import tiny_model, tiny_tokenizer
from transformers import MistralConfig, MistralForCausalLM

from lm_trials.probing.feature_probe.flags import FeatureProbeArguments
from lm_trials.probing.feature_probe.stories import read_probe_stories
from lm_trials.probing.flags import SubjectArguments, TextArguments
from lm_trials.probing.lens.flags import LensArguments
from lm_trials.probing.lens.training import read_lens_stories
from lm_trials.probing.subjects import find_subjects, load_subject, read_stories, untrained, with_weights_in
from lm_trials.probing.weights.experiments import read_texts
from lm_trials.probing.weights.flags import WeightsArguments


def saved(folder, model):
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return SubjectArguments([str(folder)], use_cpu=True)


def written(path, stories):
    path.write_text("".join(json.dumps({"story": story}) + "\n" for story in stories))
    return TextArguments(dataset_name=str(path))


def test_copies_of_a_text_are_read_once_and_told(tmp_path, capsys):
    records = read_stories(written(tmp_path / "a.jsonl", ["A cat.", "A dog.", " A cat. ", "A fox.", "A dog."]))
    assert [record["story"].strip() for record in records] == ["A cat.", "A dog.", "A fox."]
    assert "2 of 5 texts" in capsys.readouterr().err
    assert len(read_stories(written(tmp_path / "b.jsonl", ["A cat.", "A dog."]))) == 2
    assert "duplicates" not in capsys.readouterr().err


def test_each_reader_tells_which_texts_were_read(tmp_path):
    """By their content: the same in another file, another where one text is another."""
    few = [f"Tom saw a cat and {number} dogs." for number in range(60)]
    more = [*few[:-1], "Tom saw a fox."]

    def lens(texts):
        read_lens_stories(texts, LensArguments())

    def feature_probe(texts):
        read_probe_stories(texts, FeatureProbeArguments(labels="detectors"), lambda stories: [True] * len(stories))

    def weights(texts):
        (subject,) = find_subjects(saved(tmp_path / "m", tiny_model("llama", vocab_size=330)))
        read_texts(subject, texts, WeightsArguments(prune="no"))

    for read in (read_stories, lens, feature_probe, weights):
        told = []
        for name, stories in (("a", few), ("b", few), ("c", more)):
            texts = written(tmp_path / f"{name}.jsonl", stories)
            assert texts.texts_sha256 is None
            read(texts)
            told.append(asdict(texts)["texts_sha256"])
        assert len(told[0]) == 64, read
        assert told[0] == told[1] != told[2], read


@pytest.mark.parametrize("kind", ["untrained", "loaded"])
def test_in_16_bits_weights_are_rounded_and_rotary_frequencies_are_not(kind, tmp_path):
    args = saved(tmp_path / "m", tiny_model("llama", vocab_size=330))
    args.dtype = "bfloat16"
    (subject,) = find_subjects(args)
    model = untrained(subject, args) if kind == "untrained" else load_subject(subject, args)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for buffer in model.buffers() if buffer.is_floating_point()} == {torch.float32}
    everything = tiny_model("llama").to(torch.bfloat16)  # what `.to` does
    assert {b.dtype for b in everything.buffers() if b.is_floating_point()} == {torch.bfloat16}


def test_tied_weights_stay_tied_in_another_type():
    model = with_weights_in(tiny_model("gpt2"), torch.bfloat16)
    assert model.lm_head.weight.data_ptr() == model.transformer.wte.weight.data_ptr()


@pytest.mark.parametrize(("sliding", "window"), [(4, 4), (None, 64), (100, 64)])
def test_texts_are_no_longer_than_what_sliding_layers_see(sliding, window, tmp_path):
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = MistralConfig(
        vocab_size=330, num_key_value_heads=2, max_position_embeddings=64, sliding_window=sliding, **shape
    )
    model = MistralForCausalLM(config)
    assert model.num_parameters() < 25_000
    (subject,) = find_subjects(saved(tmp_path / "m", model))
    assert subject.window == window
    assert len(subject.story_ids(["One day, a cat sat on a mat. " * 30])[0]) == window
