//! Chat templates: a conversation to the text that a model was trained on.
//!
//! Templates are Jinja programs that come with the tokenizer. They run here as in transformers'
//! `apply_chat_template`, through `minijinja`: whitespace control, loop controls, the methods of
//! Python's strings, lists and dicts, and the functions that templates expect.

use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value as Jinja};
use minijinja::{Environment, ErrorKind};
use serde::{Deserialize, Serialize};
use serde_json::ser::PrettyFormatter;
use serde_json::{Map, Value};

use crate::checkpoint::python_json::{self, OneLine};
use crate::{Error, Result, Tokenizer};

/// Instructions that a template may run; thousands of messages take less.
const FUEL: u64 = 50_000_000;

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What was said.
    pub content: String,
}

impl Message {
    /// A turn of that role.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Message { role: role.into(), content: content.into() }
    }
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// `bos_token` and its like.
    special_tokens: Map<String, Value>,
}

impl ChatTemplate {
    /// The template of a model directory: `chat_template.jinja`, or else that of
    /// `tokenizer_config.json`, where of several the one named `default` counts. `None` if the
    /// model has none, as base models do: [`plain`] takes its place.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::File`] for files that cannot be read, [`Error::Template`] for a
    /// template that does not compile.
    pub fn open(directory: &Path, tokenizer: &Tokenizer) -> Result<Option<Self>> {
        let path = directory.join("chat_template.jinja");
        let source = if path.exists() {
            Some(std::fs::read_to_string(&path).map_err(Error::io("read", &path))?)
        } else {
            let value = tokenizer.config().get("chat_template");
            value.map(|value| default_template(directory, value)).transpose()?.flatten()
        };
        let names = tokenizer.config().keys().filter(|name| name.ends_with("_token"));
        let special_tokens = names
            .filter_map(|name| Some((name.clone(), tokenizer.special_token(name)?.into())))
            .collect();
        source.map(|source| Self::compile(&source, special_tokens)).transpose()
    }

    /// Compiles a template. It sees `special_tokens` as variables.
    ///
    /// # Errors
    /// [`Error::Template`] if it is not one.
    pub fn compile(source: &str, special_tokens: Map<String, Value>) -> Result<Self> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(refuse_template)?);
        environment.set_fuel(Some(FUEL));
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", to_json);
        environment.add_function("raise_exception", |message: String| {
            Err::<Jinja, _>(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", |format: String| {
            let now = jiff::Zoned::now();
            jiff::fmt::strtime::format(&format, &now)
                .map_err(|e| minijinja::Error::new(ErrorKind::InvalidOperation, e.to_string()))
        });
        environment
            .add_template_owned(NAME, without_generation_tags(source))
            .map_err(refuse_template)?;
        Ok(ChatTemplate { environment, special_tokens })
    }

    /// The text of a conversation; with `add_generation_prompt` it ends where an answer begins.
    /// `extra` are variables that some templates take, such as `enable_thinking`.
    ///
    /// # Errors
    /// [`Error::Template`] if the template refuses the conversation or fails.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        extra: &Map<String, Value>,
    ) -> Result<String> {
        let mut variables = self.special_tokens.clone();
        variables.extend(extra.clone());
        variables.insert("messages".into(), serde_json::to_value(messages).map_err(refuse)?);
        variables.insert("add_generation_prompt".into(), add_generation_prompt.into());
        for unused in ["tools", "documents"] {
            variables.entry(unused).or_insert(Value::Null);
        }
        let template = self.environment.get_template(NAME).map_err(refuse_template)?;
        template.render(Jinja::from(Serde(variables))).map_err(refuse_template)
    }
}

/// What a conversation with a model without a template looks like: its text alone, a blank line
/// between turns, since a base model was trained on no other form.
pub fn plain(messages: &[Message]) -> String {
    let turns: Vec<&str> = messages.iter().map(|message| message.content.trim_end()).collect();
    turns.join("\n\n") + "\n"
}

/// Name of the template in its environment, as errors show it.
const NAME: &str = "chat_template";

fn default_template(directory: &Path, value: &Value) -> Result<Option<String>> {
    #[derive(Deserialize)]
    struct Named {
        name: String,
        template: String,
    }
    let refuse = |got: String| {
        let path = directory.join("tokenizer_config.json");
        let expected = "chat_template: a template, or a list of named ones with a \"default\"";
        Err(Error::file(&path, expected, got, "repair the file"))
    };
    match value {
        Value::Null => Ok(None),
        Value::String(source) => Ok(Some(source.clone())),
        list => match Vec::<Named>::deserialize(list) {
            Err(e) => refuse(e.to_string()),
            Ok(all) => match all.into_iter().find(|named| named.name == "default") {
                Some(default) => Ok(Some(default.template)),
                None => refuse("a list without it".into()),
            },
        },
    }
}

/// `{% generation %}` and `{% endgeneration %}` mark what a trainer learns from and change
/// nothing else, so they become an `if` that is always taken, with their whitespace control.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        out.push_str(before);
        let word = tag.trim_start_matches(['-', '+']).trim_start();
        let replaced = [("generation", "if true"), ("endgeneration", "endif")];
        let found = replaced.into_iter().find(|(name, _)| {
            word.strip_prefix(name).is_some_and(|end| end.trim_start().starts_with(['-', '+', '%']))
        });
        rest = match found {
            Some((name, instead)) => {
                out.push_str(&tag[..tag.len() - word.len()]);
                out.push_str(instead);
                &word[name.len()..]
            }
            None => tag,
        };
    }
    out + rest
}

/// `json.dumps` without escapes, as transformers has it; Jinja's own escapes HTML.
fn to_json(value: &Jinja, options: Kwargs) -> Result<String, minijinja::Error> {
    // True would escape what is not ASCII; no published template asks for that.
    options.get::<Option<bool>>("ensure_ascii")?;
    let json = match options.get::<Option<usize>>("indent")? {
        None => python_json::serialize(value, OneLine),
        Some(width) => {
            let indent = " ".repeat(width.min(16));
            python_json::serialize(value, PrettyFormatter::with_indent(indent.as_bytes()))
        }
    };
    options.assert_all_used()?;
    let failed = |e: String| minijinja::Error::new(ErrorKind::BadSerialization, e);
    String::from_utf8(json.map_err(|e| failed(e.to_string()))?).map_err(|e| failed(e.to_string()))
}

fn refuse(reason: impl std::fmt::Display) -> Error {
    Error::Template { reason: reason.to_string() }
}

fn refuse_template(error: minijinja::Error) -> Error {
    match (error.detail(), error.line()) {
        (Some(detail), Some(line)) => refuse(format!("line {line}: {detail}")),
        (Some(detail), None) => refuse(detail),
        (None, _) => refuse(error),
    }
}
