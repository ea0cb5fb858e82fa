//! The kernels' Metal text: translated, compiled and run without a Mac.

mod conformance;
mod language;
mod model;
pub mod standin;
mod text;
