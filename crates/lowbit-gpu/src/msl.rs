//! Kernels as Metal text, for hosts that compile it themselves and bind buffers in order: PyTorch's
//! `compile_shader`, MLX, or a Metal program.
//!
//! naga writes the text, as it does when wgpu runs on Metal. Two things in it need a host that knows
//! naga, and are taken out:
//!
//! - Workgroup memory comes as parameters whose length the host has to set. They become variables of
//!   the kernel.
//! - The lengths of all buffers come as one more buffer, `_mslBufferSizes`, after the others. Only two
//!   things read it: checks of bounds, and `arrayLength`. Without checks it is therefore dropped from
//!   the text; that nothing is left which names it is made sure of, so that a kernel with
//!   `arrayLength` is refused rather than translated wrongly. With checks it stays, see
//!   [`ArgumentKind::Lengths`].

use lowbit::{Error, Result};
use naga::back::msl::{BindTarget, EntryPointResources, Options, PipelineOptions, TranslationInfo};
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};
use naga::valid::{ModuleInfo, ValidationFlags, Validator};
use naga::{AddressSpace, Module, ShaderStage};

use crate::{Access, Kernel, Limits};

/// A kernel as Metal text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Msl {
    /// The kernel's name.
    pub name: String,
    /// The whole text.
    pub source: String,
    /// The entry function. Not always the WGSL's: naga changes names that end with a digit and
    /// those that are words of C++.
    pub entry: String,
    /// What to bind, in the order of `[[buffer(i)]]`. A buffer that the kernel does not use is
    /// bound all the same.
    pub arguments: Vec<Argument>,
    /// Threads of a threadgroup.
    pub threads_per_group: [u32; 3],
    /// Bytes of threadgroup memory that the kernel declares. Nothing in it is zero at the start.
    pub threadgroup_bytes: u32,
}

/// What a kernel is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Argument {
    /// The variable's name in WGSL.
    pub name: String,
    /// What it is.
    pub kind: ArgumentKind,
}

/// What an argument is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ArgumentKind {
    /// A buffer that is only read.
    Read,
    /// A buffer that is read and written.
    ReadWrite,
    /// The parameters: u32 numbers one after the other, in the order of [`Kernel::params`].
    Params,
    /// Lengths in bytes, u32 each, of the buffers before it that are neither this nor the
    /// parameters. Only with [`Bounds::Checked`].
    Lengths,
}

/// What every GPU of Apple's has, from the M1 and the A14 on.
pub const APPLE: Limits = Limits {
    subgroup: (32, 32),
    f16: true,
    subgroups: true,
    matrix: Some(8),
    vector_tiles: false,
    binding: 1 << 31,
    threads: 1024,
    workgroup_memory: 32 << 10,
    groups: 65535,
};

/// Whether a kernel keeps itself inside its buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bounds {
    /// It does what its text says.
    Unchecked,
    /// Every index is limited to what the buffer or array has.
    Checked,
}

/// Translates a kernel.
///
/// # Errors
/// [`Error::Device`] if its text is not valid WGSL, or cannot be said in Metal as described
/// [above](self).
pub fn translate(kernel: &Kernel, bounds: Bounds) -> Result<Msl> {
    let refuse = |reason: String| Error::Device {
        op: "translate to MSL",
        reason: format!("{}: {reason}", kernel.name),
        help: "this is a mistake in the kernel's text; report it".into(),
    };
    let (module, info) = parse(&kernel.source).map_err(refuse)?;
    if bounds == Bounds::Checked && !lengths_are_in_order(&module) {
        return Err(refuse(
            "functions name buffers in another order than they are bound in".into(),
        ));
    }
    let options = options(kernel, &module, bounds);
    let pipeline = PipelineOptions {
        entry_point: Some((ShaderStage::Compute, kernel.entry.to_owned())),
        ..PipelineOptions::default()
    };
    let (source, TranslationInfo { entry_point_names }) =
        naga::back::msl::write_string(&module, &info, &options, &pipeline)
            .map_err(|e| refuse(e.to_string()))?;
    let entry = match entry_point_names.into_iter().next() {
        Some(Ok(name)) => name,
        other => return Err(refuse(format!("no entry {}: {other:?}", kernel.entry))),
    };
    let source = with_own_memory(&source, &entry)
        .ok_or_else(|| refuse(format!("no function {entry} in the text")))?;
    let source = match bounds {
        Bounds::Checked => source,
        Bounds::Unchecked => without_lengths(&source)
            .ok_or_else(|| refuse("it asks for the length of a buffer".into()))?,
    };
    Ok(Msl {
        name: kernel.name.clone(),
        source,
        entry,
        arguments: arguments(kernel, bounds),
        threads_per_group: kernel.workgroup,
        threadgroup_bytes: threadgroup_bytes(&module).map_err(refuse)?,
    })
}

/// A checked module without pipeline constants.
fn parse(wgsl: &str) -> Result<(Module, ModuleInfo), String> {
    let module = naga::front::wgsl::parse_str(wgsl).map_err(|e| e.emit_to_string(wgsl))?;
    let capabilities = naga::back::msl::supported_capabilities();
    let info = Validator::new(ValidationFlags::all(), capabilities)
        .validate(&module)
        .map_err(|e| e.emit_to_string(wgsl))?;
    naga::back::pipeline_constants::process_overrides(&module, &info, None, &Default::default())
        .map(|(module, info)| (module.into_owned(), info.into_owned()))
        .map_err(|e| e.to_string())
}

fn options(kernel: &Kernel, module: &Module, bounds: Bounds) -> Options {
    let checked = bounds == Bounds::Checked;
    let policy = if checked { BoundsCheckPolicy::Restrict } else { BoundsCheckPolicy::Unchecked };
    let mut resources = EntryPointResources::default();
    for (_, variable) in module.global_variables.iter() {
        let Some(binding) = variable.binding else { continue };
        let mutable = matches!(variable.space, AddressSpace::Storage { access }
            if access.contains(naga::StorageAccess::STORE));
        let slot = Some(binding.binding as u8);
        let target = BindTarget { buffer: slot, mutable, ..BindTarget::default() };
        resources.resources.insert(binding, target);
    }
    resources.sizes_buffer = Some(kernel.bindings.len() as u8);
    Options {
        // Of macOS 12, the oldest with all that is used.
        lang_version: (2, 4),
        per_entry_point_map: [(kernel.entry.to_owned(), resources)].into(),
        fake_missing_bindings: false,
        bounds_check_policies: BoundsCheckPolicies {
            index: policy,
            buffer: policy,
            image_load: policy,
            binding_array: policy,
        },
        zero_initialize_workgroup_memory: false,
        force_loop_bounding: checked,
        emit_int_div_checks: checked,
        ..Options::default()
    }
}

/// Whether naga has the lengths of buffers in the order of their bindings: its own is that in which the
/// text declares them, or functions before that name them.
fn lengths_are_in_order(module: &Module) -> bool {
    let storage = module.global_variables.iter().filter_map(|(_, variable)| {
        let is_storage = matches!(variable.space, AddressSpace::Storage { .. });
        variable.binding.filter(|_| is_storage).map(|binding| binding.binding)
    });
    storage.is_sorted()
}

fn arguments(kernel: &Kernel, bounds: Bounds) -> Vec<Argument> {
    let bound = kernel.bindings.iter().map(|binding| Argument {
        name: binding.name.to_owned(),
        kind: match binding.access {
            Access::Read => ArgumentKind::Read,
            Access::ReadWrite => ArgumentKind::ReadWrite,
            Access::Uniform => ArgumentKind::Params,
        },
    });
    let lengths = Argument { name: "lengths".to_owned(), kind: ArgumentKind::Lengths };
    bound.chain((bounds == Bounds::Checked).then_some(lengths)).collect()
}

/// The text with workgroup memory declared inside of `entry`; `None` if there is no such function.
fn with_own_memory(source: &str, entry: &str) -> Option<String> {
    // naga writes one parameter a line, with two characters before it.
    let head = format!(" kernel void {entry}(\n");
    let start = source.find(&head)? + head.len();
    let end = start + source[start..].find(") {\n")?;
    let (memory, others): (Vec<&str>, Vec<&str>) = source[start..end]
        .lines()
        .filter_map(|line| line.get(2..))
        .partition(|parameter| parameter.starts_with("threadgroup "));
    let variables = memory.iter().map(|parameter| {
        let (ty, name) = parameter.rsplit_once("& ")?;
        Some(format!("    {ty} {name};\n"))
    });
    Some(format!(
        "{}  {}\n) {{\n{}{}",
        &source[..start],
        others.join("\n, "),
        variables.collect::<Option<String>>()?,
        &source[end + ") {\n".len()..]
    ))
}

/// The text without the buffer of lengths; `None` if something reads it.
fn without_lengths(source: &str) -> Option<String> {
    const STRUCT: &str = "struct _mslBufferSizes {\n";
    const PARAMETER: &str = "constant _mslBufferSizes& _buffer_sizes";
    let mut text = source.to_owned();
    if let Some(start) = text.find(STRUCT) {
        let end = start + text[start..].find("};\n\n")? + "};\n\n".len();
        text.replace_range(start..end, "");
    }
    // A parameter of the kernel, of other functions, and an argument of theirs.
    if let Some(start) = text.find(&format!("\n, {PARAMETER}")) {
        let end = start + 1 + text[start + 1..].find('\n')?;
        text.replace_range(start..end, "");
    }
    let text =
        text.replace(&format!(",\n    {PARAMETER}\n"), "\n").replace(", _buffer_sizes)", ")");
    (!text.contains("_mslBufferSizes") && !text.contains("_buffer_sizes")).then_some(text)
}

/// Bytes of all workgroup variables, as Metal lays them out one after the other.
fn threadgroup_bytes(module: &Module) -> Result<u32, String> {
    let mut layouter = naga::proc::Layouter::default();
    layouter.update(module.to_ctx()).map_err(|e| e.to_string())?;
    let variables = module.global_variables.iter().map(|(_, variable)| variable);
    let bytes = variables.filter(|variable| variable.space == AddressSpace::WorkGroup).fold(
        0,
        |end, variable| {
            let layout = layouter[variable.ty];
            layout.alignment.round_up(end) + layout.size
        },
    );
    Ok(bytes)
}
