//! JSON byte for byte as Python's `json.dumps` writes it.
//!
//! Other programs compare or hash these bytes, and a converted `config.json` should differ from its
//! source in nothing but what was converted.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::ser::{CharEscape, Formatter, PrettyFormatter, Serializer};

/// `json.dumps(value)`: one line, `", "` and `": "` as separators.
pub(crate) fn line(value: &impl Serialize) -> serde_json::Result<Vec<u8>> {
    serialize(value, Python(OneLine))
}

/// `json.dumps(value, indent=2) + "\n"`, as transformers writes a `config.json`.
pub(crate) fn document(value: &impl Serialize) -> serde_json::Result<Vec<u8>> {
    let mut out = serialize(value, Python(PrettyFormatter::with_indent(b"  ")))?;
    out.push(b'\n');
    Ok(out)
}

/// Through any formatter.
pub(crate) fn serialize<F: Formatter>(
    value: &impl Serialize,
    formatter: F,
) -> serde_json::Result<Vec<u8>> {
    let mut out = Vec::new();
    value.serialize(&mut Serializer::with_formatter(&mut out, formatter))?;
    Ok(out)
}

/// Python's separators on one line.
pub(crate) struct OneLine;

impl Formatter for OneLine {
    fn begin_array_value<W: ?Sized + Write>(&mut self, w: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, w: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, w: &mut W) -> io::Result<()> {
        w.write_all(b": ")
    }
}

/// Python's spelling of numbers and strings in the layout of another formatter.
struct Python<F>(F);

impl<F: Formatter> Formatter for Python<F> {
    fn write_f64<W: ?Sized + Write>(&mut self, w: &mut W, value: f64) -> io::Result<()> {
        w.write_all(float_repr(value).as_bytes())
    }

    /// Python escapes everything that is not printable ASCII, as UTF-16.
    fn write_string_fragment<W: ?Sized + Write>(&mut self, w: &mut W, s: &str) -> io::Result<()> {
        let mut units = [0; 2];
        for c in s.chars() {
            match c {
                ' '..='~' => w.write_all(&[c as u8])?,
                c => {
                    for unit in c.encode_utf16(&mut units) {
                        write!(w, "\\u{unit:04x}")?;
                    }
                }
            }
        }
        Ok(())
    }

    fn write_char_escape<W: ?Sized + Write>(&mut self, w: &mut W, c: CharEscape) -> io::Result<()> {
        self.0.write_char_escape(w, c)
    }

    fn begin_array<W: ?Sized + Write>(&mut self, w: &mut W) -> io::Result<()> {
        self.0.begin_array(w)
    }

    fn end_array<W: ?Sized + Write>(&mut self, w: &mut W) -> io::Result<()> {
        self.0.end_array(w)
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, w: &mut W, first: bool) -> io::Result<()> {
        self.0.begin_array_value(w, first)
    }

    fn end_array_value<W: ?Sized + Write>(&mut self, w: &mut W) -> io::Result<()> {
        self.0.end_array_value(w)
    }

    fn begin_object<W: ?Sized + Write>(&mut self, w: &mut W) -> io::Result<()> {
        self.0.begin_object(w)
    }

    fn end_object<W: ?Sized + Write>(&mut self, w: &mut W) -> io::Result<()> {
        self.0.end_object(w)
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, w: &mut W, first: bool) -> io::Result<()> {
        self.0.begin_object_key(w, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, w: &mut W) -> io::Result<()> {
        self.0.begin_object_value(w)
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, w: &mut W) -> io::Result<()> {
        self.0.end_object_value(w)
    }
}

/// Python's `repr` of a float: the fewest digits that read back the same, an exponent of at least
/// two digits outside `1e-4 .. 1e16`.
fn float_repr(value: f64) -> String {
    // Rust's shortest digits are Python's; only their layout differs: "-1.25e-7".
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = format!("{value}");
        if plain.contains('.') { plain } else { plain + ".0" }
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        format!("{digits}e{sign}{:02}", exponent.abs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    // Each expectation is what CPython 3.11 prints.
    #[test]
    fn floats_are_pythons() {
        let cases = [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1e-6, "1e-06"),
            (0.0001, "0.0001"),
            (0.00001234, "1.234e-05"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (123456789.125, "123456789.125"),
            (f64::from(0.1f32), "0.10000000149011612"),
            (f64::from(2.565_124_5_f32), "2.565124511718750".trim_end_matches('0')),
            (5e-324, "5e-324"),
        ];
        for (value, repr) in cases {
            assert_eq!(float_repr(value), repr);
        }
    }

    #[test]
    fn one_line_and_a_document() {
        let value =
            json!({"a": [1, 2.0, null], "b": {}, "c": [], "d": {"e": "é\u{1f600}\u{7f}\n\"/"}});
        assert_eq!(
            String::from_utf8(line(&value).unwrap()).unwrap(),
            "{\"a\": [1, 2.0, null], \"b\": {}, \"c\": [], \
             \"d\": {\"e\": \"\\u00e9\\ud83d\\ude00\\u007f\\n\\\"/\"}}"
        );
        assert_eq!(
            String::from_utf8(document(&json!({"a": [1, 2], "b": {}, "c": []})).unwrap()).unwrap(),
            "{\n  \"a\": [\n    1,\n    2\n  ],\n  \"b\": {},\n  \"c\": []\n}\n"
        );
    }
}
