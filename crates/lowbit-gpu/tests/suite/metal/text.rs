//! What the translation gives.

use std::path::Path;

use lowbit::conformance::Rng;
use lowbit::{DType, Weight, formats};
use lowbit_gpu::msl::{ArgumentKind, Bounds, Msl, translate};
use lowbit_gpu::{Access, Binding, GpuWeight, Kernel, Needs, linear};

use super::standin::{Mode, Recorder};

const SUMS: &str = "
struct Params { n: u32, rows2: u32 }
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> unused: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
@group(0) @binding(3) var<uniform> p: Params;
override FACTOR: f32 = 2.5;
var<workgroup> sums: array<vec3<f32>, 8>;
var<workgroup> count: atomic<u32>;

fn at(i: u32) -> f32 {
    return x[i] * FACTOR;
}

@compute @workgroup_size(8)
fn sums1(@builtin(local_invocation_index) thread: u32) {
    sums[thread] = vec3<f32>(at(thread));
    atomicAdd(&count, 1u);
    workgroupBarrier();
    y[thread] = sums[thread ^ 1u].y / f32(p.n / p.rows2);
}
";

fn kernel(source: &str) -> Kernel {
    let binding = |(name, access)| Binding { name, access };
    let bindings = [
        ("x", Access::Read),
        ("unused", Access::Read),
        ("y", Access::ReadWrite),
        ("p", Access::Uniform),
    ];
    Kernel {
        name: "sums".into(),
        source: source.into(),
        entry: "sums1",
        workgroup: [8, 1, 1],
        bindings: bindings.map(binding).to_vec(),
        params: &["n", "rows2"],
        needs: Needs::default(),
    }
}

fn translated(bounds: Bounds) -> Msl {
    translate(&kernel(SUMS), bounds).unwrap()
}

/// Lines of the entry's parameters.
fn parameters(msl: &Msl) -> Vec<&str> {
    let head = format!("kernel void {}(", msl.entry);
    let lines = msl.source.lines().skip_while(|line| !line.contains(&head)).skip(1);
    lines.take_while(|line| *line != ") {").map(|line| &line[2..]).collect()
}

#[test]
fn arguments_are_bound_in_order() {
    let msl = translated(Bounds::Unchecked);
    assert_eq!(msl.entry, "sums1_");
    assert_eq!(msl.threads_per_group, [8, 1, 1]);
    let arguments: Vec<_> = msl.arguments.iter().map(|a| (a.name.as_str(), &a.kind)).collect();
    assert_eq!(
        arguments,
        [
            ("x", &ArgumentKind::Read),
            ("unused", &ArgumentKind::Read),
            ("y", &ArgumentKind::ReadWrite),
            ("p", &ArgumentKind::Params),
        ]
    );
    assert_eq!(
        parameters(&msl),
        [
            "uint thread_ [[thread_index_in_threadgroup]]",
            "device type_2 const& x [[buffer(0)]]",
            "device type_2& y [[buffer(2)]]",
            "constant Params& p [[buffer(3)]]",
        ]
    );
}

#[test]
fn workgroup_memory_belongs_to_the_kernel() {
    let msl = translated(Bounds::Unchecked);
    // Eight vectors of three, each as long as one of four, and a counter.
    assert_eq!(msl.threadgroup_bytes, 8 * 16 + 4);
    let body = msl.source.split("kernel void").nth(1).unwrap();
    let body = body.split(") {\n").nth(1).unwrap();
    let first: Vec<_> = body.lines().take(2).map(str::trim).collect();
    assert!(first[0].starts_with("threadgroup ") && first[0].ends_with(" sums;"), "{body}");
    assert_eq!(first[1], "threadgroup metal::atomic_uint count;");
}

#[test]
fn lengths_of_buffers_are_asked_for_only_to_check_bounds() {
    assert!(!translated(Bounds::Unchecked).source.contains("ize"), "neither sizes nor Sizes");
    let checked = translated(Bounds::Checked);
    assert_eq!(checked.arguments.last().unwrap().kind, ArgumentKind::Lengths);
    assert_eq!(
        parameters(&checked).last().unwrap(),
        &"constant _mslBufferSizes& _buffer_sizes [[buffer(4)]]"
    );

    let asking = SUMS.replace("p.n / p.rows2", "arrayLength(&x)");
    let refused = translate(&kernel(&asking), Bounds::Unchecked).unwrap_err().to_string();
    assert!(refused.contains("sums: it asks for the length of a buffer"), "{refused}");
    assert!(translate(&kernel(&asking), Bounds::Checked).is_ok());
}

#[test]
fn buffers_that_are_named_before_others_are_bound_are_refused_where_lengths_are_asked_for() {
    let early = format!("fn first() -> f32 {{ return y[0]; }}\n{SUMS}");
    assert!(translate(&kernel(&early), Bounds::Unchecked).is_ok());
    let refused = translate(&kernel(&early), Bounds::Checked).unwrap_err().to_string();
    assert!(refused.contains("another order"), "{refused}");
}

#[test]
fn wgsl_that_is_wrong_is_refused_with_its_place() {
    let refused = translate(&kernel("fn f() { let x = 1; x = 2; }"), Bounds::Unchecked);
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("sums: ") && refused.contains("wgsl:1:"), "{refused}");
    let refused = translate(&kernel("struct Params { n: u32 }"), Bounds::Unchecked).unwrap_err();
    assert!(refused.to_string().contains("'sums1' not found"), "{refused}");
}

/// Set to write the snapshot anew.
const UPDATE: &str = "LOWBIT_UPDATE_SNAPSHOTS";

/// One kernel's text is kept for reading: that of a product with one row of activations.
#[test]
fn the_snapshot_is_up_to_date() {
    let format = formats::ALL[0];
    let weight = Rng(1).tensor(format, &[64, 256], None).unwrap();
    let kernels = Recorder::kernels(Mode::APPLE.limits(), |recorder| {
        let weight = GpuWeight::upload(recorder, &Weight::Quantized(weight)).unwrap();
        linear(recorder, &(), 1, &weight, None, DType::F32).unwrap();
    });
    let msl = translate(&kernels[0], Bounds::Unchecked).unwrap();
    let head = format!("// {}: {UPDATE}=1 cargo test writes this file anew.\n", msl.name);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/suite/metal/snapshot.metal");
    if std::env::var_os(UPDATE).is_some() {
        std::fs::write(&path, head + &msl.source).unwrap();
        return;
    }
    let kept = std::fs::read_to_string(&path).unwrap();
    assert!(
        kept == head + &msl.source,
        "the text changed: look at it with {UPDATE}=1 and git diff"
    );
}
