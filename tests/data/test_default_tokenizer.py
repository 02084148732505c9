"""The tokenizer of a data set that is trained without one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from lm_trials.console import UsageError
from lm_trials.data.datasets import open_dataset
from lm_trials.data.default_tokenizer import default_tokenizer, default_vocab_size


@given(st.integers(0, 10**12))
def test_the_size_is_a_power_of_two_in_bounds_with_two_thousand_characters_a_token(characters):
    size = default_vocab_size(characters)
    assert 512 <= size <= 8192
    assert size & (size - 1) == 0
    if 512 < size < 8192:
        assert size <= characters / 2000 < 2 * size


def test_it_is_trained_once_and_of_a_mixture_on_all_parts(tmp_path, capsys):
    for name, text in (("one", "A cat sat on a mat. "), ("two", "Zwölf Boxkämpfer jagen. ")):
        lines = "".join(f'{{"story": "{text * 5}{number}"}}\n' for number in range(300))
        (tmp_path / f"{name}.jsonl").write_text(lines)
    one, mixture = (
        open_dataset(name, data_cache_dir=tmp_path / "data")
        for name in (str(tmp_path / "one.jsonl"), f"{tmp_path}/one.jsonl+{tmp_path}/two.jsonl")
    )
    first = default_tokenizer(one)
    assert "no tokenizer is named" in capsys.readouterr().err
    assert default_tokenizer(one) == first
    assert "no tokenizer" not in capsys.readouterr().err
    both = default_tokenizer(mixture)
    assert both != first
    assert "▁Boxkämpfer" in AutoTokenizer.from_pretrained(both).get_vocab()
    assert "▁Boxkämpfer" not in AutoTokenizer.from_pretrained(first).get_vocab()


def test_a_streamed_file_is_prepared_for_it_and_a_streamed_hub_data_set_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("lm_trials.stories.sources.hub_revision", lambda name: None)
    (tmp_path / "one.jsonl").write_text("".join(f'{{"story": "A cat sat. {number}"}}\n' for number in range(300)))
    for streaming in ("True", "CacheStream"):
        one = open_dataset(str(tmp_path / "one.jsonl"), data_cache_dir=tmp_path / "data", streaming=streaming)
        assert default_tokenizer(one).is_dir()
    with pytest.raises(UsageError, match=r"owner/tales is streamed from the Hub; give .* or --streaming CacheStream"):
        default_tokenizer(open_dataset("owner/tales", data_cache_dir=tmp_path / "data", streaming="True"))


def test_pairs_are_no_corpus(tmp_path):
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    with pytest.raises(UsageError, match=r"pairs\.jsonl"):
        default_tokenizer(open_dataset(str(tmp_path / "pairs.jsonl"), data_cache_dir=tmp_path / "data"))


def test_a_protocol_set_has_the_tokens_of_its_own_tokenizer(tiny_data, capsys):
    from prepare_tinystories import main

    words = ["--corpus", "tiny", "--vocab_size", "400", "--filtering", "features!=Twist", "--dataset_name", "no-twist"]
    main(["pretokenize", *words, "--data_cache_dir", str(tiny_data)])
    for name in ("no-twist", "tiny+no-twist"):
        with pytest.raises(UsageError, match="--tokenizer_name with which no-twist was made"):
            default_tokenizer(open_dataset(name, data_cache_dir=tiny_data))
    assert default_tokenizer(open_dataset("tiny", data_cache_dir=tiny_data)).is_dir()
