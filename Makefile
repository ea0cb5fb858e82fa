# The two commands: `make demo` and `make test`. Each does its own set-up and is safe to repeat.
# Works with GNU make 3.81 (macOS) and later.

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-full check

help:
	@echo 'make demo    build lowbit and run its demo: quantize, inspect, evaluate, generate (offline)'
	@echo 'make test    run every test: unit, integration, documentation, GPU kernels, other processors emulated, Python'
	@echo 'make test-full  the same, and what takes longer: every shape and setting on GPUs and arm64'
	@echo 'make check   formatting, lints and documentation, with warnings denied'
	@echo 'make setup   check the tools and fetch the crates of Cargo.lock (the others do this first)'
	@echo
	@echo 'Nothing is installed into the system. Build output goes to target/, crates to the cache'
	@echo 'of cargo, and emulators, a Vulkan driver and clang where there are none (Debian on x86-64 only,'
	@echo '640 MB to download) to $$LOWBIT_CACHE, by default ~/.cache/lowbit.'

setup:
	@scripts/setup

demo: setup
	cargo run --release --locked --bin lowbit -- demo

test: setup
	@scripts/test

test-full: setup
	@LOWBIT_FULL=1 scripts/test

check: setup
	@scripts/check
