//! Tests that need an adapter; on Debian `scripts/gpu-setup` brings a software one.

mod conformance;
