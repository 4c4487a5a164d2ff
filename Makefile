# Everything a newcomer needs; each target sets itself up. Python 3.11 or newer as `python3`, or PYTHON=...
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: quickstart test slow lint bench bench-kernels throughput codecs examples transfer watched fidelity fidelity-small reality overlap \
	fleet consistency chaos soak exact conformance fuzz strangers study docs proto clean

# Installs, prepares real images, trains through 17 shard processes, shows the result. Run again, it begins anew: the
# folder runs/quickstart is this demonstration's own.
quickstart: $(VENV)/quickstart
	$(BIN)/downpour prepare openmoji --out=data/openmoji
	$(BIN)/downpour local --recipe=quickstart --overwrite

# Installs, lints, type-checks, builds the documents, and passes every test that needs no special hardware.
test: $(VENV)/test lint docs
	$(BIN)/python -m pytest -m "not slow" --numprocesses=2 --dist=loadgroup

# What takes minutes each; an hour, alone on the machine, some as root.
slow: $(VENV)/dev
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m tests.structure --check

# README.md, docs/ and the API reference as pages in build/site; fails on a broken link or an undocumented public name.
docs: $(VENV)/docs
	$(BIN)/python -m mkdocs build --strict --quiet

docs: export NO_MKDOCS_2_WARNING := 1

# What a step costs, and what TensorFlow's own parameter servers take for it; about ten minutes, alone on the machine.
bench: $(VENV)/quickstart
	$(BIN)/python -m tests.benchmarks.exchange --suite

# The update rules against this machine's memory; half a minute.
bench-kernels: $(VENV)/quickstart
	$(BIN)/python -m tests.benchmarks.kernels

# `downpour.fit` beside `model.fit`, examples a second of four models; fifteen minutes, alone on the machine.
throughput: $(VENV)/quickstart
	$(BIN)/python -m tests.benchmarks.throughput

# What the codecs do to learning: every way to push and pull beside float32; half an hour for both data sets.
codecs: $(VENV)/quickstart
	$(BIN)/downpour prepare openmoji --out=data/openmoji
	$(BIN)/python -m tests.benchmarks.codecs --data=fashion_mnist
	$(BIN)/python -m tests.benchmarks.codecs --data=quickstart

# Thirteen of Keras' public examples, three seeds each, beside plain Keras; an hour.
examples: $(VENV)/dev
	$(BIN)/python -m tests.benchmarks.keras_examples

# 100 digits from a network of Fashion-MNIST beside from scratch, frozen and probed, three seeds; a quarter of an hour.
transfer: $(VENV)/dev
	$(BIN)/python -m tests.benchmarks.transfer

# Does asynchrony cost score: plain Keras beside 2 to 8 real and 16 to 200 simulated workers, three seeds; two hours.
fidelity: $(VENV)/quickstart
	$(BIN)/downpour prepare openmoji --out=data/openmoji
	$(BIN)/python -m tests.benchmarks.fidelity --treatments=default,Keep

# The same of Fashion-MNIST (Debian's dataset-fashion-mnist) alone, 2 real and 50 simulated workers; by its parts, a quarter of an hour.
fidelity-small: $(VENV)/dev
	$(BIN)/python -m tests.benchmarks.fidelity --data=fashion --workers=2 --simulated=50 --out=runs/fidelity_small

# The simulator against real processes: 4 and 8 workers, three seeds; twenty minutes.
reality: $(VENV)/dev
	$(BIN)/python -m tests.benchmarks.reality

# How the score grows with data, the last line of Fashion-MNIST (Debian's dataset-fashion-mnist); half an hour.
study: $(VENV)/dev
	$(BIN)/downpour prepare openmoji --out=data/openmoji
	$(BIN)/downpour study data-size --recipe=quickstart --fractions=0.1,0.316,1 --out=runs/study_quickstart $(SHORTER)
	$(BIN)/downpour study data-size --recipe=tests/benchmarks/fashion_tree_job.py --sizes=600,2000,6000,20000,60000 --out=runs/study_fashion_mnist

study: SHORTER := --set=cluster.num_ps=2 --set=num_steps=350 --set=schedule.every=150 --set=checkpoint_every_steps=350
study: export PYTHONPATH := $(CURDIR)

# What it costs to be watched: the quickstart with every view open beside one with none; a quarter of an hour, alone.
watched: $(VENV)/dev
	$(BIN)/downpour prepare openmoji --out=data/openmoji
	$(BIN)/python -m tests.benchmarks.watching

# What overlapping the exchange brings on a thin line, and whether it is found; a quarter of an hour, root, alone.
overlap: $(VENV)/dev
	$(BIN)/python -m tests.benchmarks.overlap

# 67 network namespaces as hosts, once with a fast line and once with a slow one; ten minutes, 20 GB, root, alone.
fleet: $(VENV)/dev
	$(BIN)/python -m tests.benchmarks.fleet

# What asynchrony costs: every pace and staleness treatment on Fashion-MNIST; an hour for three seeds.
consistency: $(VENV)/quickstart
	$(BIN)/python -m tests.benchmarks.consistency

# The quickstart under 150 faults, counting every push, and once more in peace; half an hour, as root.
chaos: $(VENV)/quickstart
	$(BIN)/downpour prepare openmoji --out=data/openmoji
	$(BIN)/python -m tests.chaos.run --recipe=quickstart

# A small job for an hour, after ten minutes: do files, threads, processes or memory grow?
soak: $(VENV)/dev
	$(BIN)/python -m tests.chaos.soak

# 2,000 random Keras models, each through three shards beside plain Keras; half an hour.
exact: $(VENV)/dev
	$(BIN)/python -m tests.exact.run --models=2000

# HTTP/2, HPACK and gRPC by their RFCs: what h2spec checks and more, on our server and on grpcio's; a minute or two.
conformance: $(VENV)/dev
	$(BIN)/python -m tests.conformance.run

# Mutated recordings to a shard, plain and TLS, beside two real workers whose pushes are counted; an hour.
fuzz: $(VENV)/dev
	$(BIN)/python -m tests.fuzz.run --minutes=60

# Every attack of a stranger on a shard for a minute beside a training; two hours, alone on the machine, as root.
strangers: $(VENV)/dev
	$(BIN)/python -m tests.strangers.run --seconds=60

# Regenerates the committed code of the .proto files; a test checks that it matches.
proto: $(VENV)/dev
	$(BIN)/python -m grpc_tools.protoc -Isrc --python_out=src --pyi_out=src --grpc_python_out=src \
		src/downpour/proto/trace.proto src/downpour/proto/parameter_server.proto src/downpour/proto/chief.proto

clean:
	rm -rf $(VENV) build dist data runs .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/quickstart: setup.py constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[worker,quickstart]'
	touch $@

$(VENV)/dev: setup.py constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[worker,quickstart,dev]'
	touch $@ $(VENV)/quickstart

# Both at once, which takes less time.
$(VENV)/test: setup.py constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[worker,quickstart,dev,docs]'
	touch $(VENV)/quickstart $(VENV)/dev $(VENV)/docs $@

$(VENV)/docs: setup.py constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[docs]'
	touch $@
