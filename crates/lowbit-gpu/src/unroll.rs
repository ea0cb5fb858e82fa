//! Loops that are written out before a kernel is compiled: what they index are variables of their own,
//! and so registers, where an array might become memory; and there are no arrays of matrices.
//!
//! ```text
//! //@ for r in ROWS
//! var sum_$r = 0.0;
//! //@ end
//! ```

/// `body` with the lines between `//@ for NAME in COUNT` and `//@ end` repeated, `$NAME` replaced by
/// 0, 1, .., and `$NAME+` by one more; loops nest. Counts are those of `counts`, or numbers.
pub(crate) fn unroll(body: &str, counts: &[(&str, u32)]) -> String {
    let lines: Vec<&str> = body.lines().collect();
    let mut out = String::with_capacity(2 * body.len());
    expand(&lines, counts, &mut Vec::new(), &mut out);
    out
}

fn expand(
    lines: &[&str],
    counts: &[(&str, u32)],
    names: &mut Vec<(String, u32)>,
    out: &mut String,
) {
    let mut rest = lines.iter().enumerate();
    while let Some((at, line)) = rest.next() {
        let Some(head) = line.trim().strip_prefix("//@ for ") else {
            let replace = |line: String, (name, i): &(String, u32)| {
                line.replace(&format!("{name}+"), &(i + 1).to_string())
                    .replace(name, &i.to_string())
            };
            out.push_str(&names.iter().fold((*line).to_owned(), replace));
            out.push('\n');
            continue;
        };
        let (name, count) = head.split_once(" in ").unwrap_or((head, "0"));
        let known = counts.iter().find(|(known, _)| *known == count);
        let count = known.map_or_else(|| count.parse().unwrap_or(0), |(_, count)| *count);
        let inner = &lines[at + 1..];
        let length = end(inner);
        for i in 0..count {
            names.push((format!("${name}"), i));
            expand(&inner[..length], counts, names, out);
            names.pop();
        }
        if length > 0 {
            rest.nth(length - 1);
        }
        rest.next();
    }
}

/// Lines before the `//@ end` of the loop that they are in.
fn end(lines: &[&str]) -> usize {
    let mut depth = 0;
    for (at, line) in lines.iter().enumerate() {
        match line.trim() {
            line if line.starts_with("//@ for ") => depth += 1,
            "//@ end" if depth == 0 => return at,
            "//@ end" => depth -= 1,
            _ => {}
        }
    }
    lines.len()
}

#[cfg(test)]
mod tests {
    use super::unroll;

    #[test]
    fn loops_nest_and_end() {
        let body =
            "a\n//@ for r in ROWS\nr$r\n    //@ for b in 2\nr$r b$b\n    //@ end\n//@ end\nz";
        let expected = "a\nr0\nr0 b0\nr0 b1\nr1\nr1 b0\nr1 b1\nz\n";
        assert_eq!(unroll(body, &[("ROWS", 2)]), expected);
        assert_eq!(unroll("//@ for i in 2\nv$i = v$i+;\n//@ end", &[]), "v0 = v1;\nv1 = v2;\n");
        assert_eq!(unroll("//@ for r in ROWS\n//@ end\nz", &[("ROWS", 3)]), "z\n");
    }
}
