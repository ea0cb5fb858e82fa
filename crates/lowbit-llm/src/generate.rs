//! From a prompt to an answer, token by token.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use lowbit::device::{Fetch, KvCache, Tensor};
use serde_json::Value;

use crate::config::Config;
use crate::fields::{Fields, count, positive, token_ids};
use crate::models::{Logits, Model};
use crate::sampling::{Sampler, Sampling};
use crate::tokenizer::read_json_if_there;
use crate::{Error, Result};

/// What a model's directory says about generating with it.
#[derive(Debug, Clone)]
pub struct GenerationDefaults {
    /// Tokens that end an answer: those of `generation_config.json`, or else of `config.json`.
    pub eos_token_ids: Vec<u32>,
    /// How its makers sample from it, if they say; greedy where `do_sample` is not set.
    pub sampling: Option<Sampling>,
}

impl GenerationDefaults {
    /// Reads `generation_config.json` of a model directory; it may be missing.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::File`] for a file that cannot be read, [`Error::Config`] for a
    /// malformed field.
    pub fn open(directory: &Path, config: &Config) -> Result<Self> {
        const NAME: &str = "generation_config.json";
        let Some(json) = read_json_if_there::<Value>(&directory.join(NAME))? else {
            return Ok(Self { eos_token_ids: config.eos_token_ids.clone(), sampling: None });
        };
        let fields = Fields::new(NAME, &json)?;
        let eos = fields.optional("eos_token_id", token_ids)?;
        Ok(Self {
            eos_token_ids: eos.unwrap_or_else(|| config.eos_token_ids.clone()),
            sampling: Some(match fields.flag("do_sample")? {
                true => sampling(&fields)?,
                false => Sampling::GREEDY,
            }),
        })
    }
}

/// Missing fields have transformers' defaults.
fn sampling(fields: &Fields) -> Result<Sampling> {
    let number =
        |name, default| Ok::<_, Error>(fields.optional(name, positive)?.unwrap_or(default));
    let not_zero = |value: &&Value| value.as_f64() != Some(0.0);
    let sampling = Sampling {
        temperature: number("temperature", 1.0)?,
        top_k: match fields.get("top_k").filter(not_zero) {
            None if fields.has("top_k") => 0,
            None => 50,
            Some(_) => fields.required("top_k", count(u64::from(u32::MAX)))?,
        },
        top_p: number("top_p", 1.0)?,
        min_p: match fields.get("min_p").filter(not_zero) {
            None => 0.0,
            Some(_) => fields.required("min_p", positive)?,
        },
        repetition_penalty: number("repetition_penalty", 1.0)?,
        seed: 0,
    };
    sampling.check()?;
    Ok(sampling)
}

/// What to generate.
#[derive(Debug, Clone)]
pub struct Options {
    /// Tokens at most.
    pub max_new_tokens: usize,
    /// How each is chosen.
    pub sampling: Sampling,
    /// Tokens that end the answer, and are no part of it.
    pub eos_token_ids: Vec<u32>,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// The model ended it.
    EndOfText,
    /// It has `max_new_tokens` tokens.
    MaxNewTokens,
    /// The session's context is full.
    ContextFull,
    /// The callback ended it.
    Interrupted,
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Generation {
    /// Its tokens, without the prompt's and without that which ended it.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub stop: Stop,
    /// Tokens of the prompt that were not in the cache yet.
    pub prefill_tokens: usize,
    /// From the start to the first token.
    pub prefill_time: Duration,
    /// Passes of one token each.
    pub decode_steps: usize,
    /// From the first token to the end.
    pub decode_time: Duration,
}

impl Generation {
    /// Tokens of the prompt per second; 0 if there were none.
    pub fn prefill_tok_s(&self) -> f64 {
        per_second(self.prefill_tokens, self.prefill_time)
    }

    /// Tokens per second after the first; 0 if there were none.
    pub fn decode_tok_s(&self) -> f64 {
        per_second(self.decode_steps, self.decode_time)
    }
}

fn per_second(count: usize, time: Duration) -> f64 {
    if count == 0 { 0.0 } else { count as f64 / time.as_secs_f64().max(1e-9) }
}

/// A model with the cache of one conversation.
///
/// Each prompt is the whole conversation so far. What of it the cache holds from the last time is
/// not computed again.
pub struct Session<'a> {
    model: &'a Model,
    cache: KvCache,
    /// The tokens whose keys and values are in the cache.
    tokens: Vec<u32>,
    /// What comes after them, where the device is at it already.
    ahead: Option<Ahead>,
}

/// The likeliest token, on its way from the device.
struct Ahead {
    id: Tensor,
    fetch: Fetch,
}

impl<'a> Session<'a> {
    /// An empty session for `max_context` positions, prompt and answer together.
    ///
    /// # Errors
    /// As [`Model::new_cache`].
    pub fn new(model: &'a Model, max_context: usize) -> Result<Self> {
        Ok(Session { model, cache: model.new_cache(max_context)?, tokens: Vec::new(), ahead: None })
    }

    /// Positions it holds.
    pub fn max_context(&self) -> usize {
        self.cache.shape().capacity
    }

    /// Answers a prompt. `on_token` is called with each token as it comes, and ends the answer
    /// after that token with [`ControlFlow::Break`].
    ///
    /// # Errors
    /// [`Error::Argument`] for an empty prompt, one that does not fit or a setting out of range;
    /// those of [`Model::forward`] and of sampling.
    pub fn generate(
        &mut self,
        prompt: &[u32],
        options: &Options,
        on_token: &mut dyn FnMut(u32) -> ControlFlow<()>,
    ) -> Result<Generation> {
        let mut sampler = Sampler::new(options.sampling)?;
        self.check_room(prompt)?;
        self.keep_common(prompt);
        let mut history = prompt.to_vec();
        let (begin, mut first_token) = (Instant::now(), None);
        let prefill_tokens = prompt.len() - self.tokens.len();
        let (mut stop, mut passes) = (None, 0);
        while stop.is_none() && history.len() - prompt.len() < options.max_new_tokens {
            if history.len() > self.max_context() {
                stop = Some(Stop::ContextFull);
                break;
            }
            let is_last = history.len() - prompt.len() + 1 == options.max_new_tokens;
            let id = self.next(&history, &mut sampler, is_last)?;
            passes += 1;
            first_token.get_or_insert_with(Instant::now);
            if options.eos_token_ids.contains(&id) {
                stop = Some(Stop::EndOfText);
                break;
            }
            history.push(id);
            if on_token(id).is_break() {
                stop = Some(Stop::Interrupted);
            }
        }
        let prefilled = first_token.unwrap_or(begin);
        Ok(Generation {
            stop: stop.unwrap_or(Stop::MaxNewTokens),
            prefill_tokens,
            prefill_time: prefilled - begin,
            decode_steps: usize::saturating_sub(passes, 1),
            decode_time: prefilled.elapsed(),
            tokens: history.split_off(prompt.len()),
        })
    }

    fn check_room(&self, prompt: &[u32]) -> Result<()> {
        let room = self.max_context();
        if (1..=room).contains(&prompt.len()) {
            return Ok(());
        }
        let expected = format!("a prompt of 1 to {room} tokens");
        let help = match prompt.is_empty() {
            true => "give the model some text to go on from",
            false => "shorten the prompt or raise --max-context",
        };
        Err(Error::argument("generate", expected, prompt.len().to_string(), help))
    }

    /// Forgets what of the cache does not begin the prompt, and its last token, since a pass needs
    /// one.
    fn keep_common(&mut self, prompt: &[u32]) {
        let common = self.tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let common = common.min(prompt.len().saturating_sub(1));
        self.ahead = None;
        self.cache.truncate(common);
        self.tokens.truncate(common);
    }

    /// Runs what of `history` is not in the cache, and chooses what comes next.
    ///
    /// A device that queues begins with the pass after that, unless it would be in vain, before
    /// this one's token is read, so that it never waits for us.
    fn next(&mut self, history: &[u32], sampler: &mut Sampler, is_last: bool) -> Result<u32> {
        let device = self.model.device();
        let next = match self.ahead.take() {
            Some(next) => next,
            None => {
                let fresh = &history[self.tokens.len()..];
                let logits = self.model.forward(fresh, &mut self.cache, Logits::Last, None)?;
                self.tokens.extend_from_slice(fresh);
                if !sampler.settings().is_argmax() {
                    return sampler.sample(&device.read(&logits)?, history);
                }
                self.likeliest(&logits)?
            }
        };
        let has_room = self.cache.len() < self.max_context();
        if is_last || !has_room || !device.queues() {
            return first_id(next.fetch);
        }
        let logits = self.model.forward_token(&next.id, &mut self.cache)?;
        self.ahead = Some(self.likeliest(&logits)?);
        let id = first_id(next.fetch)?;
        self.tokens.push(id);
        Ok(id)
    }

    fn likeliest(&self, logits: &Tensor) -> Result<Ahead> {
        let device = self.model.device();
        let id = device.argmax(logits)?;
        Ok(Ahead { fetch: device.fetch(&id)?, id })
    }
}

fn first_id(fetch: Fetch) -> Result<u32> {
    Ok(fetch()?.first().map_or(0, |id| *id as u32))
}
