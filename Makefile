# Three commands: `make demo` trains and evaluates a small language model, `make quick` runs the tests that need no
# training but one (under 90 seconds on two cores), `make test` runs all tests.
# Each makes the environment in .venv first, with the versions that constraints.txt pins.
.PHONY: demo quick test lint clean

PYTHON ?= python3
BIN := .venv/bin
DEMO := out/demo
DATA := --data_cache_dir $(DEMO)/data
RUN := $(DEMO)/run
# pip builds the project in an environment of its own; the variable makes the pins hold there too.
INSTALL = PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.demo: .venv/bin/python setup.cfg constraints.txt
	@echo "installing into .venv (about 2 minutes, 2 GB)"
	$(INSTALL) --editable .
	@touch $@

.venv/.test: .venv/bin/python setup.cfg constraints.txt
	@echo "installing into .venv with the test extra (about 2 minutes, 2 GB)"
	$(INSTALL) --editable '.[test]'
	@touch $@ .venv/.demo

# No step of the demo needs the network.
demo: export HF_HUB_OFFLINE = 1
demo: export HF_DATASETS_OFFLINE = 1
demo: .venv/.demo
	@rm -rf $(DEMO)
	$(BIN)/python prepare_tinystories.py generate --num_stories 20000 --seed 0 $(DATA)
	$(BIN)/python prepare_tinystories.py train_vocab --corpus generated --vocab_size 1000 $(DATA)
	$(BIN)/python prepare_tinystories.py pretokenize --corpus generated --vocab_size 1000 $(DATA)
	$(BIN)/accelerate launch --config_file accelerate_configs/cpu.yaml train_gpt2.py --config configs/demo.yaml $(DATA) --output_dir $(RUN)
	$(BIN)/python eval_checkpoint.py --model_dir $(RUN) --dataset_name generated $(DATA)
	$(BIN)/python -m lm_trials.evaluation.generate --model_name_or_path $(RUN) --num_samples 3 --temperature 0.5 --seed 1
	@echo
	@echo "The model, its log and its loss curve lie in $(RUN), the data in $(DEMO)/data, the evaluation in $(RUN)/eval."
	@echo "Next: README.md, \"Real TinyStories\" and \"A GPU\"."

test quick: .venv/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(SELECTION) $(PYTEST)

quick: SELECTION = -m "not slow and not end_to_end" --hypothesis-profile quick

lint: .venv/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(DEMO)
