# Two commands do everything: `make demo` and `make test`. Both install what is missing (as root, through apt).
# RocksDB's C++ takes long to build, so the build lives outside the checkout and later runs reuse it.
export CARGO_TARGET_DIR ?= $(HOME)/.cache/backstay/target
BACKSTAY := $(CARGO_TARGET_DIR)/debug/backstay

.PHONY: bench bench-quick bench-layout demo test test-long test-vm soak mutants fuzz build setup lint install fmt
demo: build
	@BACKSTAY=$(BACKSTAY) scripts/demo.sh

test: setup lint
	@scripts/test.sh

# The full version of what `make test` has a quick one of; at most an hour. PARTS="fuzz soak" takes only those.
test-long: setup
	@scripts/test-long.sh

# Breaks every rule once and demands that its test fails; minutes a mutant. RULES="T1 W5" takes only those.
mutants: setup
	@cargo run --quiet --locked --example mutants -- $(RULES)

# Coverage-guided, with the stable compiler; SECONDS a target, all or those of TARGETS.
SECONDS ?= 60
fuzz: setup
	@scripts/fuzz.sh $(SECONDS) $(TARGETS)

# Both hosts through everything at once, against the oracle; prints seeds and counts.
soak: setup
	@BACKSTAY_SOAK_SECONDS=$${BACKSTAY_SOAK_SECONDS:-3600} cargo test --quiet --locked --test soak -- --nocapture

# The units under systemd, and the kernel's nbd, in a machine of their own (root, five minutes).
test-vm: build
	@BACKSTAY=$(BACKSTAY) scripts/test-vm.sh

build: setup
	@cargo build --quiet --locked

setup:
	@scripts/setup.sh

lint:
	@echo '== fmt, clippy, rustdoc: warnings are errors'
	@cargo fmt --all --check
	@cargo clippy --quiet --locked --workspace --all-targets -- -D warnings
	@RUSTDOCFLAGS='-D warnings' cargo doc --quiet --locked --workspace --no-deps

# Each line beside its peer, in the same run; writes docs/BENCHMARKS.md. ONLY="1 2 7" takes only those, and writes nothing.
# The dev profile, so that RocksDB is not built again.
BENCH := cargo bench --quiet --locked --profile dev
bench: setup
	@SCALE=full $(BENCH) --bench lines

# At most 8 minutes: smaller sizes, fewer rounds.
bench-quick: setup
	@SCALE=quick $(BENCH) --bench lines

# The journal's layout against RocksDB's own log. BENCH_MIB=1024 changes the amount.
bench-layout: setup
	@$(BENCH) --bench journal_layout

fmt:
	@cargo fmt --all

# Puts the binary into /usr/local/bin; `backstay links` then makes the operator's command names.
install: build
	install -m 0755 $(BACKSTAY) /usr/local/bin/backstay
