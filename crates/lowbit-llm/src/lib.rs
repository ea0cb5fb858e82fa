//! Checkpoints, tokenizers and Llama-family models on [`lowbit`] weights.
//!
//! [`Checkpoint`] reads Hugging Face model directories and safetensors files, quantized by
//! bitsandbytes or by this library; [`convert`] writes them.

#![deny(unsafe_code)]

pub mod chat;
pub mod checkpoint;
pub mod config;
pub mod convert;
mod error;
pub mod eval;
pub mod generate;
pub mod models;
mod rope;
pub mod sampling;
mod tokenizer;

pub use checkpoint::{Checkpoint, Entry};
pub use config::Config;
pub use error::{Error, Result};
pub use models::Model;
pub use tokenizer::{TextStream, Tokenizer};
