//! bench: the fields of its JSON, and that it checks itself. Figures of a debug build mean nothing.

use serde_json::Value;

use crate::support::{gpu, lowbit};

const FIELDS: [&str; 13] = [
    "op",
    "format",
    "shape",
    "rows",
    "dtype",
    "device",
    "threads",
    "ms_min",
    "ms_median",
    "gb_s",
    "gflop_s",
    "max_error",
    "floor_ms",
];

/// The objects that a run on a device printed, one a line. A debug build warns on stderr.
#[track_caller]
fn records_on(device: &str, arguments: &[&str]) -> Vec<Value> {
    records_of(device, &[arguments, &["--device", device]].concat())
}

#[track_caller]
fn records_of(device: &str, arguments: &[&str]) -> Vec<Value> {
    let run = lowbit(&[arguments, &["--seconds", "0.01", "--json"]].concat());
    assert_eq!(run.status, Some(0), "{}", run.stderr);
    let parse = |line| serde_json::from_str(line).expect("JSON");
    let records: Vec<Value> = run.stdout.lines().map(parse).collect();
    for record in &records {
        for field in FIELDS {
            assert!(record.get(field).is_some(), "no {field} in {record}");
        }
        let number = |field: &str| record[field].as_f64().expect("a number");
        assert!(0.0 < number("ms_min") && number("ms_min") <= number("ms_median"), "{record}");
        assert!(number("gb_s") > 0.0 && number("floor_ms") > 0.0, "{record}");
        assert_eq!(Some(record["device"].as_str()), device.split(':').next().map(Some));
    }
    records
}

#[track_caller]
fn records(arguments: &[&str]) -> Vec<Value> {
    records_on("cpu", arguments)
}

#[test]
fn linear_has_a_record_for_every_combination() {
    let arguments = ["bench", "linear", "--format", "nf4,int8", "--shape", "96x160"];
    let more = ["--rows", "1,3", "--dtype", "f32,bf16", "--threads", "1"];
    let all = records(&[&arguments[..], &more].concat());
    assert_eq!(all.len(), 8);
    let first = &all[0];
    assert_eq!(first["op"], "linear");
    assert_eq!(first["shape"], serde_json::json!([96, 160]));
    assert_eq!((&first["rows"], &first["threads"]), (&1.into(), &1.into()));
    assert!(all.iter().all(|r| r["gflop_s"].as_f64() > Some(0.0)));
    assert!(all.iter().all(|r| r["max_error"].as_f64() < Some(0.04)));
}

#[test]
fn quantize_and_dequantize_are_exact() {
    for op in ["quantize", "dequantize"] {
        let all = records(&["bench", op, "--format", "nf4", "--double-quant", "--shape", "70x100"]);
        assert_eq!(all.len(), 1);
        assert_eq!((&all[0]["op"], &all[0]["max_error"]), (&op.into(), &0.0.into()));
        assert_eq!((&all[0]["rows"], &all[0]["gflop_s"]), (&Value::Null, &Value::Null));
    }
}

#[test]
fn optimizers_take_the_steps_of_the_reference() {
    let arguments = ["bench", "optimizer", "--optimizer", "adam,lion", "--bits", "8,32"];
    let all = records(&[&arguments[..], &["--numbers", "5000", "--dtype", "f32,bf16"]].concat());
    assert_eq!(all.len(), 8);
    assert_eq!((&all[0]["op"], &all[0]["format"]), (&"optimizer".into(), &"adam 8-bit".into()));
    assert!(all.iter().all(|r| r["max_error"] == 0.0));
    lowbit(&["bench", "optimizer", "--optimizer", "sophia"]).fails(2, &["sophia", "lion"]);
    let huge = ["bench", "optimizer", "--numbers", "1000000000000"];
    lowbit(&huge).fails(1, &["memory", "--numbers"]);
}

#[test]
fn model_measures_prompt_and_answer() {
    for what in [&["models/tinybard-nf4dq"][..], &["--shape", "llama-15m", "--double-quant"]] {
        let lengths = ["--prompt-tokens", "8", "--new-tokens", "3"];
        let all = records(&[&["bench", "model"], what, &lengths].concat());
        assert_eq!(all.iter().map(|r| &r["op"]).collect::<Vec<_>>(), ["prefill", "decode"]);
        assert!(all.iter().all(|r| r["format"] == "nf4" && r["tok_s"].as_f64() > Some(0.0)));
        assert!(all.iter().all(|r| r["double_quant"] == true));
    }
    lowbit(&["bench", "model"]).fails(2, &["--shape"]);
    lowbit(&["bench", "model", "x", "--shape", "llama-1b"]).fails(2, &["--shape"]);
}

/// The software rasterizer of the tests, too, since it is asked for by name.
#[test]
fn a_gpu_is_measured_and_checked() {
    let Some(gpu) = gpu() else { return };
    let arguments = ["bench", "linear", "--shape", "96x160", "--rows", "1,40"];
    assert_eq!(records_on(&gpu, &arguments).len(), 2);
    let arguments = ["bench", "optimizer", "--optimizer", "adam,momentum", "--bits", "8,32"];
    let all = records_on(&gpu, &[&arguments[..], &["--numbers", "5003"]].concat());
    assert_eq!(all.len(), 4);
    assert!(all.iter().all(|r| r["device"] == "gpu" && r["max_error"] == 0.0));
    let arguments = ["bench", "model", "models/tinybard-nf4dq", "--prompt-tokens", "8"];
    let all = records_on(&gpu, &[&arguments[..], &["--new-tokens", "3"]].concat());
    assert!(all.iter().all(|r| r["max_error"].as_f64() > Some(0.0)));
}

#[test]
fn what_does_not_fit_in_memory_is_refused() {
    for (shape, rows) in [("1000000x1000000", "1"), ("64x64", "1000000000000")] {
        let arguments = ["bench", "linear", "--shape", shape, "--rows", rows];
        lowbit(&arguments).fails(1, &[shape, "memory", "--shape"]);
    }
    let huge = usize::MAX.to_string();
    let arguments = ["bench", "linear", "--shape", &format!("{huge}x{huge}")];
    lowbit(&arguments).fails(2, &["shape"]);
}

#[test]
fn people_get_a_table() {
    let arguments = ["bench", "linear", "--shape", "64x64", "--rows", "1", "--seconds", "0.01"];
    let run = lowbit(&arguments);
    assert_eq!(run.status, Some(0), "{}", run.stderr);
    assert!(
        ["median", "64x64", "GB/s of reading"].iter().all(|w| run.stdout.contains(w)),
        "{}",
        run.stdout
    );
    assert_eq!(run.stderr.contains("say nothing"), cfg!(debug_assertions), "{}", run.stderr);
}

#[test]
fn schedules_are_for_matrix_hardware() {
    let bench = |more: &[&str]| {
        lowbit(&[&["bench", "linear", "--shape", "64x128", "--schedule"][..], more].concat())
    };
    bench(&["whole", "--device", "cpu"]).fails(2, &["--schedule", "--device gpu"]);
    bench(&["split:0"]).fails(2, &["from 1 on"]);
    bench(&["halves"]).fails(2, &["whole", "split:PARTS", "stream:GROUPS"]);
    let Some(gpu) = gpu() else { return };
    let run = bench(&["stream:8", "--rows", "64", "--device", &gpu]);
    assert_eq!(run.status, Some(1), "{}", run.stderr);
    assert!(run.stderr.contains("matrix hardware"), "{}", run.stderr);
}
