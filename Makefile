# mergeops: `make demo` runs the main job on generated data, `make test` passes the tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The demo's base model: tiny (trained from scratch in a minute) or smollm2 (SmolLM2-135M-Instruct).
MODEL ?= tiny
SEED ?= 0
OUT ?= demo-out/$(MODEL)-$(SEED)
# The benchmark's checkpoints: 1b (10 GB), 300m or tiny; RESUME=--resume goes on with a cut run.
SIZE ?= 1b
METHODS ?= linear,task_arithmetic,slerp,nuslerp,model_stock,dare_linear,dare_ties,ties,breadcrumbs,della
PAIRS ?= 5
RESUME ?=
# A checkout of an earlier mergeops to measure beside this one.
EARLIER ?=
# Files or directories to test, e.g. TEST=tests/methods.
TEST ?= tests
# LOCKED=1 installs what docker/requirements.lock pins, by hash, before the rest.
LOCKED ?=
# How long to fuzz.
MINUTES ?= 60
# A process for each processor and one for when they wait, which take whole files: their servers and
# models are made once. The files come in the order of tests/conftest.py, long ones first.
WORKERS := -n $(shell echo $$(($$(nproc) + 1))) --maxprocesses 5 --dist loadfile --no-loadscope-reorder

# What targets of their own run.
ELSEWHERE := not sweep and not soak and not parity and not old_files

# The tests start thousands of processes, none of which is to compile the sources again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install demo check quick test test-all soak fuzz parity old-files leftovers bench lint format types docs
.PHONY: service lock sbom audit wheel ui clean

help: ## List the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/.venv:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	touch $@

$(VENV)/.torch: $(VENV)/.venv .ci/install-torch
	.ci/install-torch $(BIN)/python
	touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[demo]'
	touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	$(if $(LOCKED),$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r docker/requirements.lock)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

install: $(VENV)/.dev ## Install mergeops with what the tests need into $(VENV)

demo: $(VENV)/.demo ## Train runs, adopt them, merge, score, promote: MODEL=tiny|smollm2 SEED=0
	$(BIN)/python -m demo --model $(MODEL) --seed $(SEED) --out $(OUT)

ui: $(VENV)/.demo ## Open the demo's MLflow UI on http://127.0.0.1:5000
	$(BIN)/mlflow server --backend-store-uri sqlite:///$(OUT)/mlflow.db --port 5000

service: $(VENV)/.demo ## Serve the demo's proposals on a page; its address is printed
	cd $(OUT) && MLFLOW_TRACKING_URI=sqlite:///$(abspath $(OUT))/mlflow.db $(abspath $(BIN))/mergeops serve --config-dir conf --config service.yaml

check: $(VENV)/.dev ## Check style and types, and run the quick tests, all at once
	$(MAKE) --no-print-directory --jobs 2 --output-sync=target types lint quick

quick: $(VENV)/.dev ## Run the tests that need neither servers nor torch
	$(BIN)/python -m pytest --quick $(WORKERS) -m "$(ELSEWHERE) and not slow and not integration"

test: $(VENV)/.dev ## Run the tests but for the long sweeps over crashes and faults: TEST=tests/methods
	$(BIN)/python -m pytest $(WORKERS) -m "$(ELSEWHERE)" $(TEST)

test-all: test ## Run all tests, as CI does: the sweeps too
	$(BIN)/python -m pytest $(WORKERS) -m "sweep and not soak" $(TEST)

soak: $(VENV)/.dev ## Run the tests that take minutes each, or a machine to themselves
	$(BIN)/python -m pytest -m soak $(TEST)

fuzz: $(VENV)/.dev ## Mutate every kind of file that is read, and keep findings: MINUTES=60
	PYTHONPATH=tests $(BIN)/python -m fuzz --minutes $(MINUTES)

# mergekit pins versions that exclude ours, so it has an environment of its own.
.venv-mergekit/.mergekit: .ci/install-torch
	$(PYTHON) -m venv .venv-mergekit
	.ci/install-torch .venv-mergekit/bin/python
	.venv-mergekit/bin/python -m pip install --quiet torch==2.13.0 mergekit==0.1.5
	touch $@

parity: $(VENV)/.dev .venv-mergekit/.mergekit ## Compare merges with mergekit's, tensor by tensor
	$(BIN)/python -m pytest $(WORKERS) -m parity tests/parity

# The libraries that wrote most of the files that people have, beside our torch.
.venv-old/.old: $(VENV)/.dev
	$(PYTHON) -m venv --without-pip .venv-old
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > \
		$$(echo .venv-old/lib/python3*/site-packages)/ours.pth
	$(BIN)/python -m pip --python .venv-old/bin/python install --quiet \
		transformers==4.57.6 peft==0.17.1 accelerate==1.10.1 datasets==3.6.0
	touch $@

old-files: $(VENV)/.dev .venv-old/.old ## Merge what transformers 4.57 and PEFT 0.17 write
	$(BIN)/python -m pytest -m old_files tests/old_files

# The libraries that shard, beside our torch and transformers; their own tests are not run.
.venv-sharded/.sharded: $(VENV)/.dev
	$(PYTHON) -m venv --without-pip .venv-sharded
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > \
		$$(echo .venv-sharded/lib/python3*/site-packages)/ours.pth
	DS_BUILD_OPS=0 $(BIN)/python -m pip --python .venv-sharded/bin/python install --quiet \
		--no-build-isolation deepspeed==0.19.8
	$(BIN)/python -m pip --python .venv-sharded/bin/python install --quiet --no-deps \
		megatron-core==0.16.1 nemo-automodel==0.7.0 torchtune==0.6.1
	touch $@

leftovers: $(VENV)/.dev .venv-sharded/.sharded ## Put together what DeepSpeed, Megatron-Core and NeMo Automodel write
	.venv-sharded/bin/python -m pytest tests/recover/test_zero.py tests/recover/test_megatron.py \
		tests/recover/test_automodel.py tests/recover/test_llama_names.py

bench: $(VENV)/.dev .venv-mergekit/.mergekit ## Compare speed and memory with mergekit's: SIZE=1b|300m|tiny METHODS= PAIRS=5
	$(BIN)/python -m benchmarks --size $(SIZE) --methods $(METHODS) --pairs $(PAIRS) $(RESUME) \
		$(if $(EARLIER),--earlier $(EARLIER))

lint: $(VENV)/.dev ## Check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.dev ## Apply the style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.dev ## Check types
	$(BIN)/mypy

$(VENV)/.docs: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@

docs: $(VENV)/.docs ## Build the documentation as a site into site/; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

.venv-tools/.tools:
	$(PYTHON) -m venv .venv-tools
	.venv-tools/bin/python -m pip install --quiet pip-tools cyclonedx-bom pip-audit
	touch $@

lock: .venv-tools/.tools ## Pin every package of the images by version and hash: docker/*.lock
	.ci/lock .venv-tools

sbom: .venv-tools/.tools ## Write what the lock pins as a CycloneDX SBOM: dist/sbom.cdx.json
	mkdir -p dist
	.venv-tools/bin/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible \
		--output-format JSON --output-file dist/sbom.cdx.json docker/requirements.lock

audit: .venv-tools/.tools ## Ask the advisory database about every pinned package; one that it does not know fails
	.ci/audit .venv-tools/bin/pip-audit

wheel: $(VENV)/.dev ## Build the wheel into dist/
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean: ## Remove what the demo and the build made
	rm -rf demo-out build dist site mergeops-work
