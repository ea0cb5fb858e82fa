//! Checkpoints, tokenizers and Llama-family models on [`lowbit`] weights.
//!
//! [`Checkpoint`] reads Hugging Face model directories and safetensors files, quantized by
//! bitsandbytes or by this library; [`convert`] writes them. A [`Model`] runs one on any
//! [`Device`](lowbit::device::Device); [`Tokenizer`] and [`chat`] turn text into its tokens and
//! back, [`generate`] answers prompts, and [`eval`] measures what quantization cost.
//!
//! ```
//! use std::{ops::ControlFlow, path::Path, sync::Arc};
//!
//! use lowbit::{Cpu, CpuDevice, DType};
//! use lowbit_llm::generate::{Options, Session};
//! use lowbit_llm::{Checkpoint, Model, Tokenizer, sampling::Sampling};
//!
//! # let directory = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/tinybard"));
//! let device = Arc::new(CpuDevice::new(Cpu::best(), DType::BF16));
//! let model = Model::load(&Checkpoint::open(directory)?, device, &mut |_, _| {})?;
//! let tokenizer = Tokenizer::open(directory)?;
//!
//! let prompt = tokenizer.encode("KING HENRY:\n")?;
//! let eos_token_ids = model.config().eos_token_ids.clone();
//! let options = Options { max_new_tokens: 8, sampling: Sampling::GREEDY, eos_token_ids };
//! let mut session = Session::new(&model, 64)?;
//! let answer = session.generate(&prompt, &options, &mut |_| ControlFlow::Continue(()))?;
//! assert!(!tokenizer.decode(&answer.tokens)?.is_empty());
//! # Ok::<(), lowbit_llm::Error>(())
//! ```

#![deny(unsafe_code)]

pub mod chat;
pub mod checkpoint;
pub mod config;
pub mod convert;
mod error;
pub mod eval;
mod fields;
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
