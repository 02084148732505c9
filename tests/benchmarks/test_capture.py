"""The benchmark of capturing, small: every way is gone and told, TransformerLens only where it is installed."""

import importlib.util
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "capture.py"
FEW = ["--num_stories", "6", "--repetitions", "2", "--batch_size", "4", "--config_name", "stories260K"]


@pytest.fixture
def benchmark(monkeypatch):
    spec = importlib.util.spec_from_file_location("capture_benchmark", FILE)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "capture_benchmark", module)
    spec.loader.exec_module(module)
    # In this process: one that torch has computed in must not be forked.
    monkeypatch.setattr(module, "alone", lambda function, *given: function(*given))
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    return module


@pytest.mark.slow
def test_every_way_is_measured_and_told(benchmark, capsys, tiny_data):
    seconds = benchmark.main(FEW)
    assert list(seconds) == [benchmark.PLAIN, benchmark.BARE, *benchmark.OURS]
    assert min(seconds.values()) > 0
    shown = capsys.readouterr()
    assert "TransformerLens is not installed" in shown.err
    out = " ".join(shown.out.split())
    assert "model stories260K, 260,032 parameters, random weights, float32 texts 6 stories" in out
    assert "batches 2 of 4" in out
    assert "2 interleaved repetitions" in out
    assert all(name in out for name in seconds)
    assert "hidden states, into files / plain" in out
    assert "run_with_cache" not in out
    corpus = [
        "--dataset_name",
        "tiny",
        "--data_cache_dir",
        str(tiny_data),
        "--tokenizer_name",
        str(tiny_data / "tok400"),
    ]
    assert benchmark.main([*FEW, *corpus, "--repetitions", "1", "--num_stories", "3"])


@pytest.mark.parametrize(("flags", "said"), [
    (["--num_stories", "0"], "--num_stories 0 must be"),
    (["--config_name", "base8m"], "--config_name base8m is no preset; give one of demo,"),
    (["--dataset_name", "./nowhere.txt"], "nowhere.txt"),
])  # fmt: skip
def test_what_cannot_be_measured_is_one_line(flags, said, benchmark, capsys):
    with pytest.raises(SystemExit) as left:
        benchmark.main([*FEW, *flags])
    assert left.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
