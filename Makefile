# The two commands of the README, and what belongs to them.
#
#   make demo [FIRMWARE=uefi] [KEEP=1]   a PC without a disk boots Debian
#   make test                            all that CI runs
#   make bench-iscsi                     our iSCSI target and tgt side by side
#   make bench-disk                      overlays and disk formats beside a raw file
#   make bench-net                       DHCP, TFTP and HTTP beside dnsmasq, Kea, tftpd-hpa and nginx
#   make instructions                    records the instructions an operation takes
#
# Packages are installed by lab/setup.sh, only those that are missing, and it says which.

# A toolchain of rustup's is found without a login shell, and so is /usr/sbin.
export PATH := $(PATH):$(HOME)/.cargo/bin:/usr/sbin:/sbin
CARGO ?= cargo
FIRMWARE ?= bios
DEMO = $(CARGO) run --quiet --locked --package lab --bin demo --

# Tests that make namespaces run as root; everything else as you.
export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER := $(CURDIR)/lab/runner.sh
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER := $(CURDIR)/lab/runner.sh

.PHONY: demo console clean-demo test test-all crash crash-proofs kill conformance fuzz bench-iscsi bench-disk bench-net instructions check-instructions format lint setup

setup:
	@sh lab/setup.sh

# Boots a real Debian to its login prompt and prints the machine's timeline.
demo: setup
	$(CARGO) build --locked --package diskless --bin diskless --package lab --bin demo
	@$(DEMO) --firmware=$(FIRMWARE) $(if $(KEEP),--keep)

# Joins the terminal to the PC that `make demo KEEP=1` left running.
console:
	@$(DEMO) console

# Ends and removes what a demo or a killed test left.
clean-demo:
	@$(DEMO) clean

# Everything, the real boots in their short form.
test: export DISKLESS_E2E ?= short
test: setup format
	@if $(CARGO) nextest --version >/dev/null 2>&1; then \
		$(CARGO) nextest run --workspace --locked; \
	else \
		$(CARGO) test --workspace --locked; \
	fi
	@$(MAKE) --no-print-directory check-instructions

# Every real boot there is, the long form of the crash proofs, and every lint.
test-all: export DISKLESS_E2E = all
test-all: lint crash-proofs test

crash-proofs: setup
	@$(MAKE) --no-print-directory crash STATES=200000
	@$(MAKE) --no-print-directory kill LOOPS=100
	@$(CARGO) test --release --locked --package disk --lib -- --ignored \
		--exact overlay::tests::kill::answered_writes_survive_kill_9_many_times

# Power lost at so many moments of random work on every kind of disk, and what
# is found held against the promise: `make crash STATES=1000000`,
# `make crash ONLY=overlay-keep SEED=77` for what a report names.
STATES ?= 10000
SEED ?= 1
crash:
	@STATES=$(STATES) SEED=$(SEED) ONLY="$(ONLY)" $(CARGO) test --quiet --release --locked --package disk --lib -- \
		--exact tests::crash::states::no_state_that_a_loss_of_power_leaves_has_lost_anything --nocapture

# The real server killed so many times under QEMU's iSCSI writers; whatever was
# answered is looked for after each restart: `make kill LOOPS=200`.
LOOPS ?= 20
kill: setup
	@LOOPS=$(LOOPS) SEED=$(SEED) $(CARGO) test --quiet --locked --package diskless --test targets -- \
		--exact killed::answered_writes_survive_kill_9_of_the_server --nocapture

# libiscsi's conformance tests on every shape of unit, or some of them:
# `make conformance ONLY="Sanitize Unmap.VPD"`.
conformance: setup
	@$(CARGO) test --quiet --locked --package diskless --test conformance -- $(ONLY)

# Arbitrary bytes against every parser and whole sessions, so long in all:
# `make fuzz SECONDS=600`, `make fuzz DOOR=session`, `make fuzz ASAN=1`.
SECONDS ?= 60
fuzz:
	@SECONDS_IN_ALL=$(SECONDS) DOOR="$(DOOR)" ASAN="$(ASAN)" CARGO="$(CARGO)" fuzz/run.sh

# Ours and tgt in turn: minutes, as root; the tables go to docs/bench.
bench-iscsi: ROUNDS ?= 5
bench-iscsi:
	@sh benches/setup.sh
	$(CARGO) build --release --locked --package bench
	@$(if $(filter 0,$(shell id -u)),,sudo) "$${CARGO_TARGET_DIR:-target}/release/bench" iscsi --rounds $(ROUNDS) --home "$${CARGO_TARGET_DIR:-target}" --cold-home "$${CARGO_TARGET_DIR:-target}" --out docs/bench

# Overlays, restore points, clones, formats: minutes; needs 4 GB of memory and of
# disk where the build lies; the tables go to docs/bench.
bench-disk: ROUNDS ?= 5
bench-disk:
	$(CARGO) build --release --locked --package bench
	@"$${CARGO_TARGET_DIR:-target}/release/bench" disk --rounds $(ROUNDS) --home "$${CARGO_TARGET_DIR:-target}" --out docs/bench

# The program beside other servers, on LANs in namespaces: minutes, as root; the
# others are unpacked under .lab/, not installed; the tables go to docs/bench.
TOOLS = $${DISKLESS_LAB:-$(CURDIR)/.lab}/bench
bench-net: ROUNDS ?= 5
bench-net:
	@sh benches/setup.sh "$(TOOLS)"
	$(CARGO) build --release --locked --package diskless --bin diskless --package bench
	@$(if $(filter 0,$(shell id -u)),,sudo) "$${CARGO_TARGET_DIR:-target}/release/bench" net --rounds $(ROUNDS) --cells "$(ONLY)" --program "$${CARGO_TARGET_DIR:-target}/release/diskless" --tools "$(TOOLS)" --home "$${CARGO_TARGET_DIR:-target}" $(if $(ONLY),,--out docs/bench)

# Instructions per operation, counted by valgrind: compared in every test, with
# room for another compiler; recorded anew by whoever has changed them.
COUNT = $(CARGO) run --quiet --locked --profile instructions --package bench -- instructions
check-instructions:
	@$(COUNT) check benches/instructions.json

instructions: setup
	@$(COUNT) update benches/instructions.json

# The hand of the house: layout, and the lints of Cargo.toml with no warning left.
format:
	@if $(CARGO) fmt --version >/dev/null 2>&1; then \
		$(CARGO) fmt --all --check; \
	elif [ "$$CI" = true ]; then \
		echo "make: rustfmt is missing (rustup component add rustfmt)" >&2; exit 1; \
	else \
		echo "make: rustfmt is missing, so the layout is not looked at" >&2; \
	fi

lint: setup
	@if $(CARGO) clippy --version >/dev/null 2>&1; then \
		$(CARGO) clippy --quiet --workspace --all-targets --locked -- --deny warnings; \
	elif [ "$$CI" = true ]; then \
		echo "make: clippy is missing (rustup component add clippy)" >&2; exit 1; \
	else \
		echo "make: clippy is missing, so the lints are not looked at" >&2; \
	fi
