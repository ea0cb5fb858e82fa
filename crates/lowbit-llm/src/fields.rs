//! Fields of a JSON file, read one at a time, so that every refusal names the field, its value and
//! what would do.

use serde_json::{Map, Value};

use crate::{Error, Result};

const MAX_POSITIONS: u64 = 1 << 31;

/// What to do about a value that another program may well run.
pub(crate) const OTHER_MODEL: &str = "a model with that setting cannot run here yet";
/// What to do about a value that no model has.
pub(crate) const INCONSISTENT: &str = "take config.json from where the weights come from";

/// An object of a JSON file, and where it is there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fields<'a> {
    file: &'static str,
    object: &'a Map<String, Value>,
    /// Prefix of field names in errors.
    inside: &'static str,
}

/// Reads a value, or says what it should have been.
type Read<T> = Result<T, &'static str>;

impl<'a> Fields<'a> {
    /// The fields of a whole file of that name.
    ///
    /// # Errors
    /// [`Error::Config`] if it is not an object.
    pub fn new(file: &'static str, json: &'a Value) -> Result<Self> {
        let object = json.as_object().ok_or_else(|| Error::Config {
            file,
            field: "the file".into(),
            expected: "a JSON object".into(),
            got: shown(json),
            help: INCONSISTENT.into(),
        })?;
        Ok(Fields { file, object, inside: "" })
    }

    /// A field, `None` where it is missing or null.
    ///
    /// # Errors
    /// [`Error::Config`] if `read` refuses the value.
    pub fn optional<T>(
        &self,
        name: &str,
        read: impl FnOnce(&'a Value) -> Read<T>,
    ) -> Result<Option<T>> {
        let refused = |expected| self.refuse(name, expected, INCONSISTENT);
        self.get(name).map(|value| read(value).map_err(refused)).transpose()
    }

    /// A field that must be there.
    ///
    /// # Errors
    /// As [`optional`](Self::optional), and where it is missing.
    pub fn required<T>(&self, name: &str, read: impl FnOnce(&'a Value) -> Read<T>) -> Result<T> {
        self.optional(name, read)?.ok_or_else(|| self.refuse(name, "a value", INCONSISTENT))
    }

    /// A required number in `1..=max`.
    ///
    /// # Errors
    /// As [`required`](Self::required).
    pub fn count(&self, name: &str, max: u64) -> Result<usize> {
        self.required(name, count(max))
    }

    /// A boolean that is false where it is missing.
    ///
    /// # Errors
    /// As [`optional`](Self::optional).
    pub fn flag(&self, name: &str) -> Result<bool> {
        let read = |value: &Value| value.as_bool().ok_or("true or false");
        Ok(self.optional(name, read)?.unwrap_or(false))
    }

    /// A value as it is, `None` where it is missing or null.
    pub fn get(&self, name: &str) -> Option<&'a Value> {
        self.object.get(name).filter(|value| !value.is_null())
    }

    /// Whether a field is there, null included.
    pub fn has(&self, name: &str) -> bool {
        self.object.contains_key(name)
    }

    /// The fields of an object inside this one, if it has it.
    ///
    /// # Errors
    /// As [`optional`](Self::optional).
    pub fn object(&self, name: &'static str) -> Result<Option<Fields<'a>>> {
        let object = self.optional(name, |value| value.as_object().ok_or("an object"))?;
        Ok(object.map(|object| Fields { object, inside: name, ..*self }))
    }

    /// All fields.
    pub fn iter(&self) -> impl Iterator<Item = (&'a str, &'a Value)> + use<'a> {
        self.object.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// The error for the value of a field.
    pub fn refuse(&self, name: &str, expected: impl Into<String>, help: &str) -> Error {
        let field = match self.inside {
            "" => name.to_string(),
            inside => format!("{inside}.{name}"),
        };
        Error::Config {
            file: self.file,
            field,
            expected: expected.into(),
            got: self.object.get(name).map_or("nothing".into(), shown),
            help: help.into(),
        }
    }
}

/// A value as errors show it: a hostile one is not repeated in full.
fn shown(value: &Value) -> String {
    const LENGTH: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(LENGTH) {
        Some((end, _)) => format!("{}..", &text[..end]),
        None => text,
    }
}

/// Reads a whole number in `1..=max`.
pub(crate) fn count(max: u64) -> impl FnOnce(&Value) -> Read<usize> {
    move |value| match value.as_u64() {
        Some(n) if (1..=max).contains(&n) => usize::try_from(n).map_err(|_| "a smaller number"),
        Some(0) => Err("a number above 0"),
        Some(_) => Err("a number that a model can have"),
        None => Err("a whole number above 0"),
    }
}

/// Reads a number of positions.
pub(crate) fn positions(value: &Value) -> Read<usize> {
    count(MAX_POSITIONS)(value)
}

/// Reads a finite number above 0.
pub(crate) fn positive(value: &Value) -> Read<f32> {
    match value.as_f64().map(|x| x as f32) {
        Some(x) if x.is_finite() && x > 0.0 => Ok(x),
        _ => Err("a number above 0"),
    }
}

/// Reads a string.
pub(crate) fn text(value: &Value) -> Read<&str> {
    value.as_str().ok_or("a string")
}

/// Reads a token id or a list of them.
pub(crate) fn token_ids(value: &Value) -> Read<Vec<u32>> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let ids = match value {
        Value::Array(values) => values.iter().map(id).collect(),
        value => id(value).map(|id| vec![id]),
    };
    ids.ok_or("a token id or a list of them")
}
