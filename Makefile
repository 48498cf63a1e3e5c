# Kiln's commands. `make help` lists them; what they do is in scripts/.

SHELL := /bin/bash
.DEFAULT_GOAL := help

# Where `make run` listens; empty: 8080, or a free port if that is taken.
PORT ?=
# Cargo profile of `make run`.
PROFILE ?= release
# One benchmark of `make bench`, as in `make bench NAME=warm`; empty: all of them.
NAME ?=
# This machine's target; named when building, so that RUSTFLAGS leave build scripts alone.
HOST = $(shell rustc -vV | sed -n 's/^host: //p')
# Options of `make bench-hop`, as in `make bench-hop HOP='--in-flight 32 --rounds 5'`; empty: the whole table.
HOP ?=
# How many crash schedules `make test-crash` plays on each kind of queue; the model of one plays 500 times as many.
SCHEDULES ?= 1
# One schedule of `make test-crash`, as it was printed; empty: the first ones.
SEED ?=
# The queue of `make test-crash`: sqlite, postgres, mariadb, redis, kafka, or model (virtual time, no processes); empty: all.
QUEUE ?=
# More arguments for `make test`, as in `make test ARGS='-p kiln-shared codec'`.
ARGS ?= --workspace

.PHONY: help run stop test test-fleet test-crash lint fmt docs bench bench-micro bench-hop clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## Start Kiln, deploy a function, call it cold and warm (PORT=8080)
	@PORT='$(PORT)' PROFILE='$(PROFILE)' scripts/demo.sh

stop: ## Stop the Kiln that `make run` started
	@scripts/demo.sh stop

test: ## Run every test, those with real containers too
	@scripts/setup.sh test
	cargo nextest run $(ARGS)

test-fleet: ## Break a fleet of real processes under wrk's load (needs root)
	@scripts/setup.sh fleet
	cargo build --workspace --bins
	cargo nextest run -p kiln-cli --test fleet --run-ignored all --no-capture --no-fail-fast

test-crash: ## Kill agents, balancers and the queue at random (SCHEDULES=1, SEED=, QUEUE= one of sqlite, postgres, mariadb, redis, kafka, model)
	@QUEUE='$(QUEUE)' SEED='$(SEED)' SCHEDULES='$(SCHEDULES)' scripts/test-crash.sh

lint: ## Check formatting, lints and (if cargo-deny is installed) licences
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	@if command -v cargo-deny >/dev/null; then cargo deny --workspace check; \
	else echo "cargo-deny is not installed: licences and bans not checked (cargo install --locked cargo-deny)"; fi

fmt: ## Format all code
	cargo fmt --all

docs: ## Build the API documentation and check the written one
	RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps
	@scripts/check-docs.sh

bench: ## Compare Kiln with other proxies and Docker side by side (NAME=warm, cold, memory, edge, split, fleet, async or catalog)
	@scripts/setup.sh bench
	cargo build --release -p kiln-cli -p kiln-lb -p kiln-agent -p kiln-loadtest
	RUSTFLAGS='-C target-feature=+crt-static' cargo build --release -p kiln-examples --target $(HOST) --target-dir target/static
	cargo bench -p kiln-queue --bench commit --no-run
	cargo build --release --manifest-path loadtest/peers/pingora/Cargo.toml --target-dir target/peers
	target/release/bench --function target/static/$(HOST)/release/echo $(NAME)

bench-micro: ## Measure ring, routes, codecs and slots with criterion
	@scripts/setup.sh build
	cargo bench -p kiln-benches

bench-hop: ## Measure the ways of carrying a call from a balancer to an agent (HOP='--help' for options)
	@scripts/setup.sh build
	cargo build --release -p kiln-loadtest --bin bench-hop
	target/release/bench-hop $(HOP)

clean: stop ## Stop Kiln, remove what was built and what `make run` stored
	cargo clean
	rm -rf .kiln
