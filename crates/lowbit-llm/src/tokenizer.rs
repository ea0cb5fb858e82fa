//! `tokenizer.json` through Hugging Face's own `tokenizers`, and the parts of
//! `tokenizer_config.json` that text needs.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tokenizers::processors::template::TemplateProcessing;

use crate::checkpoint::read_json;
use crate::{Error, Result};

/// Text to tokens and back.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// `tokenizer_config.json`, empty without one.
    config: Map<String, Value>,
}

impl Tokenizer {
    /// Opens the tokenizer of a model directory.
    ///
    /// # Errors
    /// [`Error::Io`] without a `tokenizer.json`, [`Error::File`] for one that cannot be read.
    pub fn open(directory: &Path) -> Result<Self> {
        let path = directory.join("tokenizer.json");
        let bytes = std::fs::read(&path).map_err(Error::io("read", &path))?;
        let malformed = |reason: tokenizers::Error| {
            let help = "take tokenizer.json from where the weights come from";
            Error::file(&path, "a tokenizer", reason.to_string(), help)
        };
        let mut inner = tokenizers::Tokenizer::from_bytes(&bytes).map_err(malformed)?;
        // Left over from training in some files; a text is neither cut nor filled up here.
        inner.with_truncation(None).map_err(malformed)?.with_padding(None);
        let path = directory.join("tokenizer_config.json");
        let config = read_json_if_there(&path)?.unwrap_or_default();
        let mut tokenizer = Tokenizer { inner, config };
        tokenizer.set_post_processor(&path)?;
        Ok(tokenizer)
    }

    /// Where `tokenizer_config.json` speaks of `add_bos_token` or `add_eos_token`, those and not
    /// `tokenizer.json` say what is put around a text, as in transformers.
    fn set_post_processor(&mut self, path: &Path) -> Result<()> {
        let flag = |name: &str| self.config.get(name).map(|value| value.as_bool() == Some(true));
        let (bos, eos) = (flag("add_bos_token"), flag("add_eos_token"));
        if bos.is_none() && eos.is_none() {
            return Ok(());
        }
        let wanted = |flag: Option<bool>, name: &str| {
            self.special_token(name).filter(|_| flag == Some(true))
        };
        let (bos, eos) = (wanted(bos, "bos_token"), wanted(eos, "eos_token"));
        let mut pieces = Vec::new();
        pieces.extend(bos.clone());
        pieces.push("$A".to_string());
        pieces.extend(eos.clone());
        let mut special = Vec::new();
        for token in bos.into_iter().chain(eos) {
            let id = self.inner.token_to_id(&token).ok_or_else(|| {
                let help = "take both tokenizer files from where the weights come from";
                Error::file(path, "special tokens of tokenizer.json", format!("{token:?}"), help)
            })?;
            special.push((token, id));
        }
        let refuse = |reason: String| {
            Error::file(path, "special tokens to put around a text", reason, "repair the file")
        };
        let template = TemplateProcessing::builder()
            .try_single(pieces)
            .map_err(refuse)?
            .special_tokens(special)
            .build()
            .map_err(|reason| refuse(reason.to_string()))?;
        self.inner.with_post_processor(Some(template));
        Ok(())
    }

    /// The tokens of a text, with the special tokens that the tokenizer puts around one.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] for text that it cannot take.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_with(text, true)
    }

    /// The tokens of a rendered chat template, which has its special tokens already.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_rendered(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_with(text, false)
    }

    fn encode_with(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        let encoding =
            self.inner.encode_fast(text, add_special_tokens).map_err(refuse("encode"))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of tokens, without special ones. Bytes that are not UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if its decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.inner.decode(ids, true).map_err(refuse("decode"))
    }

    /// Decodes tokens as they come.
    pub fn stream(&self) -> TextStream<'_> {
        TextStream { tokenizer: self, ids: Vec::new(), shown: String::new(), new: 0 }
    }

    /// A token as the tokenizer spells it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Id of a token by its spelling.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Number of tokens, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The spelling of `bos_token`, `eos_token`, .. in `tokenizer_config.json`, where it is a
    /// string or an object with `content`.
    pub fn special_token(&self, name: &str) -> Option<String> {
        let value = self.config.get(name)?;
        value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_string)
    }

    /// Id of the token that ends a text, if `tokenizer_config.json` names one.
    pub fn eos_token_id(&self) -> Option<u32> {
        self.id(&self.special_token("eos_token")?)
    }

    /// `tokenizer_config.json`.
    pub(crate) fn config(&self) -> &Map<String, Value> {
        &self.config
    }
}

/// Reads a JSON file; `None` where there is none.
pub(crate) fn read_json_if_there<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    if path.exists() { read_json(path).map(Some) } else { Ok(None) }
}

fn refuse(action: &'static str) -> impl Fn(tokenizers::Error) -> Error {
    move |reason| Error::Tokenizer { action, reason: reason.to_string() }
}

/// Text of tokens as they come: whole characters only, and together exactly the text of all.
#[derive(Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    /// Tokens already shown that give the next ones their context, then `new` that are not shown.
    ids: Vec<u32>,
    /// What the first of those decode to.
    shown: String,
    new: usize,
}

/// A character has at most four bytes, so after this many tokens it will not become whole.
const MOST_HELD_BACK: usize = 8;

impl TextStream<'_> {
    /// The text that `id` completes; empty while a character is not whole.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        self.new += 1;
        let text = self.tokenizer.decode(&self.ids)?;
        if text.ends_with(char::REPLACEMENT_CHARACTER) && self.new < MOST_HELD_BACK {
            return Ok(String::new());
        }
        self.show(text)
    }

    /// What is still held back: bytes that never became a character, as U+FFFD.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn finish(mut self) -> Result<String> {
        let text = self.tokenizer.decode(&self.ids)?;
        self.show(text)
    }

    fn show(&mut self, text: String) -> Result<String> {
        let newest = self.ids.len() - std::mem::take(&mut self.new);
        let fresh = match text.strip_prefix(self.shown.as_str()) {
            Some(fresh) => fresh.to_string(),
            // A decoder may read earlier bytes anew when invalid ones follow.
            None => self.tokenizer.decode(&self.ids[newest..])?,
        };
        // Without text of their own the newest give no context: a special token before a word.
        if !fresh.is_empty() {
            self.ids.drain(..newest);
            self.shown = self.tokenizer.decode(&self.ids)?;
        }
        Ok(fresh)
    }
}
