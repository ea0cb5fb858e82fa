//! Reads Metal text just far enough to call its kernels: their parameters, and their variables in
//! threadgroup memory.

use std::collections::HashMap;

/// A kernel that a text declares.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Kernel {
    pub name: String,
    pub parameters: Vec<Parameter>,
}

/// A parameter of a kernel.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Parameter {
    /// Its type, as it is written.
    pub ty: String,
    pub role: Role,
}

/// What a parameter is given.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The buffer of that index.
    Buffer(usize),
    /// A position or size, by Metal's name for it.
    Builtin(String),
}

impl Kernel {
    /// How many buffers it takes.
    pub fn buffers(&self) -> usize {
        let index = |p: &Parameter| match p.role {
            Role::Buffer(index) => index + 1,
            Role::Builtin(_) => 0,
        };
        self.parameters.iter().map(index).max().unwrap_or(0)
    }

    /// C++ that calls it with buffers `b` at position `p`.
    pub fn call(&self) -> String {
        let arguments = self.parameters.iter().map(|p| match (&p.role, p.ty.strip_suffix('&')) {
            // By way of a number, for a pointer cannot be cast into the constant address space.
            (Role::Buffer(i), Some(ty)) => format!("*({ty}*)(ulong)b[{i}]"),
            (Role::Buffer(i), None) => format!("({})(ulong)b[{i}]", p.ty),
            (Role::Builtin(name), _) => format!("standin_builtin<{}>::of(p->{name})", p.ty),
        });
        format!("{}({})", self.name, arguments.collect::<Vec<_>>().join(", "))
    }
}

/// The kernels of a text without comments.
pub(crate) fn kernels(text: &str) -> Result<Vec<Kernel>, String> {
    let mut kernels = Vec::new();
    for (at, word) in words(text) {
        if word != "kernel" {
            continue;
        }
        let open = text[at..].find('(').ok_or("kernel without parameters")? + at;
        let name = words(&text[at..open]).last().map_or("", |(_, name)| name);
        let close = closing(text, open).ok_or_else(|| format!("{name}: no closing parenthesis"))?;
        let parameters = split(&text[open + 1..close]).into_iter().map(parameter);
        let parameters =
            parameters.collect::<Result<_, _>>().map_err(|reason| format!("{name}: {reason}"))?;
        kernels.push(Kernel { name: name.to_owned(), parameters });
    }
    Ok(kernels)
}

fn parameter(text: &str) -> Result<Parameter, String> {
    let refuse = || format!("parameter `{}` has no attribute that is known here", text.trim());
    let (declaration, attribute) = text.split_once("[[").ok_or_else(refuse)?;
    let attribute = attribute.split_once("]]").ok_or_else(refuse)?.0.trim();
    let name = words(declaration).last().ok_or_else(refuse)?.0;
    let role = match attribute.strip_prefix("buffer(").and_then(|rest| rest.strip_suffix(')')) {
        Some(index) => Role::Buffer(index.trim().parse().map_err(|_| refuse())?),
        None => Role::Builtin(attribute.to_owned()),
    };
    Ok(Parameter { ty: declaration[..name].trim().to_owned(), role })
}

/// The text with variables `threadgroup T name;` as references to memory that the scheduler has. All
/// lines stay where they are.
pub(crate) fn with_shared_variables(text: &str) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut done = 0;
    for (at, word) in words(text) {
        let starts_statement = text[..at].trim_end().ends_with([';', '{', '}']);
        if word != "threadgroup" || !starts_statement {
            continue;
        }
        let end = at + text[at..].find(';').ok_or("`threadgroup` without a semicolon")?;
        let declaration = &text[at + word.len()..end];
        if declaration.contains(['=', '(', '*', '&']) {
            continue; // a pointer, not a variable
        }
        if declaration.contains(',') {
            return Err(format!("declare one variable at a time: `threadgroup{declaration}`"));
        }
        let (head, size) = match declaration.find('[') {
            Some(bracket) => declaration.split_at(bracket),
            None => (declaration, ""),
        };
        let (name_at, name) = words(head).last().ok_or("`threadgroup` without a name")?;
        let ty = head[..name_at].trim();
        out.push_str(&text[done..at]);
        out.push_str(&format!(
            "typedef {ty} {name}_type{size}; threadgroup {name}_type& {name} = \
             standin_shared<{name}_type>()"
        ));
        done = end;
    }
    out.push_str(&text[done..]);
    Ok(out)
}

/// The text with `make_float4(..)` for `X(..)` where `X` is another name of `metal::float4`, and so for
/// other vectors. For their own names the headers do that.
pub(crate) fn with_aliases_made(text: &str) -> String {
    let declared = text.lines().filter_map(|line| {
        let (vector, name) = line.trim().strip_prefix("typedef metal::")?.split_once(' ')?;
        // A matrix, such as `float2x4`, has a constructor of its own.
        (!vector.contains('x')).then_some((name.strip_suffix(';')?, vector))
    });
    let vectors: HashMap<&str, &str> = declared.collect();
    let mut out = String::with_capacity(text.len());
    let mut done = 0;
    for (at, word) in words(text) {
        if let (Some(vector), true) = (vectors.get(word), text[at + word.len()..].starts_with('('))
        {
            out.push_str(&text[done..at]);
            out.push_str("make_");
            out.push_str(vector);
            done = at + word.len();
        }
    }
    out + &text[done..]
}

/// The text with spaces for its comments.
pub(crate) fn without_comments(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('/') {
        let (before, comment) = rest.split_at(at);
        out.push_str(before);
        let end = if comment.starts_with("//") {
            comment.find('\n').unwrap_or(comment.len())
        } else if comment.starts_with("/*") {
            comment.find("*/").map_or(comment.len(), |end| end + 2)
        } else {
            out.push('/');
            rest = &comment[1..];
            continue;
        };
        out.push(' ');
        out.extend(comment[..end].chars().filter(|c| *c == '\n'));
        rest = &comment[end..];
    }
    out + rest
}

/// Identifiers and numbers, with where they start.
fn words(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let inside = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at + text[at..].find(inside)?;
        at = text[start..].find(|c| !inside(c)).map_or(text.len(), |length| start + length);
        Some((start, &text[start..at]))
    })
}

/// Where the parenthesis at `open` is closed.
fn closing(text: &str, open: usize) -> Option<usize> {
    let mut depth = 0;
    text[open..].char_indices().find_map(|(i, c)| {
        depth += depth_change(c);
        (depth == 0).then_some(open + i)
    })
}

/// The parts between commas that no bracket encloses.
fn split(text: &str) -> Vec<&str> {
    let mut depth = 0;
    let parts = text.split(|c| {
        depth += depth_change(c);
        c == ',' && depth == 0
    });
    parts.filter(|part| !part.trim().is_empty()).collect()
}

fn depth_change(c: char) -> i32 {
    match c {
        '(' | '[' | '<' => 1,
        ')' | ']' | '>' => -1,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_found_with_their_parameters() {
        let text = without_comments(
            "#include <metal_stdlib>\n/* kernel void no(); */ float helper(float x);\n\
             [[max_total_threads_per_threadgroup(64)]] kernel void main_(\n  \
             metal::uint3 id [[threadgroup_position_in_grid]]\n\
             , device type_2 const& codes [[buffer(0)]] // the codes\n\
             , constant Params& p [[buffer(1)]]\n) {}\n\
             kernel void second(device const metal::vec<float, 4> *x [[ buffer(2) ]]) {}",
        );
        let kernels = kernels(&text).unwrap();
        let names: Vec<_> = kernels.iter().map(|k| (k.name.as_str(), k.buffers())).collect();
        assert_eq!(names, [("main_", 2), ("second", 3)]);
        assert_eq!(
            kernels[0].call(),
            "main_(standin_builtin<metal::uint3>::of(p->threadgroup_position_in_grid), \
             *(device type_2 const*)(ulong)b[0], *(constant Params*)(ulong)b[1])"
        );
        assert_eq!(kernels[1].call(), "second((device const metal::vec<float, 4> *)(ulong)b[2])");
    }

    #[test]
    fn parameters_that_nothing_can_be_given_to_are_refused() {
        let refused = kernels("kernel void f(threadgroup float* x) {}").unwrap_err();
        assert!(refused.contains("f: parameter `threadgroup float* x`"), "{refused}");
    }

    #[test]
    fn variables_in_threadgroup_memory_come_from_the_scheduler() {
        let text = "void f(threadgroup float& x) {\n    threadgroup type_9 tile;\n    threadgroup \
                    float many[4][2]; threadgroup float* p = &x;\n}";
        assert_eq!(
            with_shared_variables(text).unwrap(),
            "void f(threadgroup float& x) {\n    typedef type_9 tile_type; threadgroup \
             tile_type& tile = standin_shared<tile_type>();\n    typedef float \
             many_type[4][2]; threadgroup many_type& many = standin_shared<many_type>(); \
             threadgroup float* p = &x;\n}"
        );
        assert!(with_shared_variables("{ threadgroup int a, b; }").is_err());
    }

    #[test]
    fn other_names_of_vectors_make_them() {
        let text = "typedef metal::float4 X4_;\nX4_ f(X4_ x) { return x + X4_(1.0, X4_2(x)); }";
        let made =
            "typedef metal::float4 X4_;\nX4_ f(X4_ x) { return x + make_float4(1.0, X4_2(x)); }";
        assert_eq!(with_aliases_made(text), made);
    }

    #[test]
    fn comments_leave_their_lines() {
        assert_eq!(without_comments("a / b // c\n/* d\ne */f/"), "a / b  \n \nf/");
    }
}
