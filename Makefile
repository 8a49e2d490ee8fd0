# `make demo`, `make test` and `make check` need Python 3.11 or newer; what they use is installed into .venv the first time,
# over the network or from pip's cache. Another interpreter: `make test PYTHON=python3.12`.
# The small CPU build of PyTorch: `PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make test`.

PYTHON ?= python3
INSTALLED := .venv/.installed

.PHONY: demo test check docs faults bench bench-all

demo: $(INSTALLED)
	.venv/bin/avdistill demo --out demo

# Three processes for two cores: some tests wait for a server or a killed process. Tests are compiled once, not in each.
test: $(INSTALLED)
	PYTHONDONTWRITEBYTECODE= .venv/bin/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

check: $(INSTALLED)
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

# The documentation as a site, into site/; it opens without a server. A broken link is an error.
docs: $(INSTALLED)
	.venv/bin/python docs/site/build.py

# The fault list of docs/reliability.md, in about an hour; `make faults CLIPS=DIR` mutates the videos of a folder.
faults: $(INSTALLED)
	.venv/bin/python benchmarks/faults/run.py $(if $(CLIPS),--clips "$(CLIPS)")

# Two quiet cores are needed; data is made in BENCH. `bench` takes half an hour: against peers, and what has a limit.
# `bench-all` measures the rest of docs/performance.md, too, and makes 9 GB of data.
BENCH ?= .bench
SPEED := .venv/bin/python benchmarks/speed

bench: $(INSTALLED)
	$(SPEED)/training.py step_8x56 step_16x112
	$(SPEED)/retrieval.py
	$(SPEED)/preparation.py --work $(BENCH) prepare_vs_decode help
	$(SPEED)/peers.py --work $(BENCH)/peers
	$(SPEED)/latency.py --work $(BENCH)
	$(SPEED)/serve.py --work $(BENCH)/serve
	$(SPEED)/many_clips.py --work $(BENCH)/many audit_1m
	.venv/bin/python benchmarks/results/tables.py docs/performance.md

bench-all: bench
	$(SPEED)/training.py method_overhead
	$(SPEED)/students.py speed
	$(SPEED)/loading.py --work $(BENCH)
	$(SPEED)/growth.py --work $(BENCH)
	$(SPEED)/preparation.py --work $(BENCH) prepare_vs_chain prepare_memory
	$(SPEED)/scale.py --work $(BENCH)
	$(SPEED)/many_clips.py --work $(BENCH)/many open_2m corrupt_1m embed_memory evaluate_1m crd_200k
	$(SPEED)/profiling.py --work $(BENCH)
	$(SPEED)/small_models.py families --work $(BENCH)/small
	.venv/bin/python benchmarks/results/tables.py docs/performance.md

# The mark `.installing` stands while the work goes on. One that is found at the start was left by an install that was
# cut short: nobody knows which packages are whole, so the environment is made anew.
$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "avdistill needs Python 3.11 or newer, '$(PYTHON)' is not: name one, as in make PYTHON=python3.12" >&2; exit 1; }
	@echo "Installing avdistill and its dependencies into .venv: this happens once, PyTorch takes a few minutes ..."
	@if [ -e .venv/.installing ]; then rm -rf .venv; fi
	@mkdir -p .venv && touch .venv/.installing
	@$(PYTHON) -m venv .venv
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@rm .venv/.installing
	@touch $@
