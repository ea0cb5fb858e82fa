//! Checkpoints, tokenizers and Llama-family models on [`lowbit`] weights.
//!
//! [`Checkpoint`] reads Hugging Face model directories and safetensors files, quantized by
//! bitsandbytes or by this library; [`convert`] writes them.

#![deny(unsafe_code)]

pub mod checkpoint;
mod error;

pub use checkpoint::{Checkpoint, Entry};
pub use error::{Error, Result};
