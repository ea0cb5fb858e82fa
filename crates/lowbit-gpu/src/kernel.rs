//! What a kernel is: WGSL text, an entry, the buffers it takes and the threads of a group.
//!
//! A kernel's text is generated from constants and declarations that [`Builder`] writes and a body
//! in `kernels/`. No body knows a format or a type of activations by name.

use std::fmt::Write;

/// A kernel, ready to be compiled by wgpu or to be translated to MSL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// Unique: the operation, the format and whatever else the text depends on.
    pub name: String,
    /// Complete WGSL.
    pub source: String,
    /// The entry function.
    pub entry: &'static str,
    /// Threads of a group.
    pub workgroup: [u32; 3],
    /// What is bound, in the order of `@binding`; the parameters come last.
    pub bindings: Vec<Binding>,
    /// Names of the parameters, u32 each, in order.
    pub params: &'static [&'static str],
    /// What the adapter must have.
    pub needs: Needs,
}

/// A buffer that a kernel takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// Its variable.
    pub name: &'static str,
    /// What the kernel does with it.
    pub access: Access,
}

/// What a kernel does with a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reads it.
    Read,
    /// Reads and writes it.
    ReadWrite,
    /// Reads the parameters: u32 numbers, the same for all threads.
    Uniform,
}

/// What an adapter must have for a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Needs {
    /// f16 arithmetic.
    pub f16: bool,
    /// Subgroup operations.
    pub subgroups: bool,
    /// Cooperative matrices of that size.
    pub matrix: Option<u32>,
}

/// Puts the text of a kernel together.
#[derive(Debug)]
pub(crate) struct Builder {
    name: String,
    head: String,
    bindings: Vec<Binding>,
    needs: Needs,
}

impl Builder {
    /// A kernel of that name.
    pub fn new(name: impl Into<String>) -> Self {
        let needs = Needs::default();
        Builder { name: name.into(), head: String::new(), bindings: Vec::new(), needs }
    }

    /// Adds to the name: whatever the text depends on.
    pub fn tag(mut self, tag: impl std::fmt::Display) -> Self {
        let _ = write!(self.name, ".{tag}");
        self
    }

    /// A buffer of that WGSL type.
    pub fn bind(mut self, name: &'static str, access: Access, ty: &str) -> Self {
        let space = match access {
            Access::Read => "storage, read",
            Access::ReadWrite => "storage, read_write",
            Access::Uniform => "uniform",
        };
        let index = self.bindings.len();
        let _ = writeln!(self.head, "@group(0) @binding({index}) var<{space}> {name}: {ty};");
        self.bindings.push(Binding { name, access });
        self
    }

    /// A constant of WGSL type u32.
    pub fn constant(self, name: &str, value: impl Into<u32>) -> Self {
        let value = value.into();
        self.text(&format!("const {name} = {value}u;"))
    }

    /// A constant of WGSL type bool.
    pub fn flag(self, name: &str, value: bool) -> Self {
        self.text(&format!("const {name} = {value};"))
    }

    /// Lines of WGSL.
    pub fn text(mut self, text: &str) -> Self {
        self.head.push_str(text);
        self.head.push('\n');
        self
    }

    /// What the adapter must have, besides what was said before.
    pub fn needs(mut self, needs: Needs) -> Self {
        self.needs.f16 |= needs.f16;
        self.needs.subgroups |= needs.subgroups;
        self.needs.matrix = self.needs.matrix.or(needs.matrix);
        self
    }

    /// The kernel with that body; `workgroup` threads of a group are the constant `GROUP`.
    pub fn build(
        self,
        params: &'static [&'static str],
        entry: &'static str,
        workgroup: u32,
        body: &str,
    ) -> Kernel {
        let fields: String = params.iter().map(|p| format!("    {p}: u32,\n")).collect();
        let this = self
            .text(&format!("struct Params {{\n{fields}}}"))
            .bind("p", Access::Uniform, "Params")
            .constant("GROUP", workgroup);
        let mut source = String::new();
        if this.needs.f16 {
            source.push_str("enable f16;\n");
        }
        if this.needs.matrix.is_some() {
            source.push_str("enable wgpu_cooperative_matrix;\n");
        }
        source.push_str(&this.head);
        source.push('\n');
        source.push_str(body);
        Kernel {
            name: this.name,
            source,
            entry,
            workgroup: [workgroup, 1, 1],
            bindings: this.bindings,
            params,
            needs: this.needs,
        }
    }
}
