//! `lowbit tune`: the table, and who takes it.

use std::path::Path;

use serde_json::Value;

use crate::support::{Run, command, finish, gpu, lowbit, names, temp, text};

/// Runs the command for a user with those settings.
fn run(settings: &Path, arguments: &[&str]) -> Run {
    finish(command(arguments).env("XDG_CONFIG_HOME", settings))
}

#[test]
fn what_is_tuned_is_taken_and_forgotten() {
    let Some(gpu) = gpu() else { return };
    let settings = temp();
    let tune =
        |more: &[&str]| run(settings.path(), &[&["tune", "--device", &gpu][..], more].concat());
    assert!(tune(&["--reset"]).succeeds().contains("Nothing was measured"));
    let small = ["--shape", "64x128", "--rows", "1", "--dtype", "f32", "--milliseconds", "0.1"];
    let said = tune(&small).succeeds();
    assert!(said.contains("kernels measured") && said.contains("gemv"), "{said}");

    let directory = settings.path().join("lowbit/tuned");
    let [name] = &names(&directory)[..] else { panic!("one file") };
    let path = directory.join(name);
    let mut kept: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(kept["lines"].as_array().map(Vec::len), Some(2));
    assert_eq!(kept["lines"][0]["weight_rows"], 64);

    // Whoever opens the GPU reads it, and says so if it is not for this version.
    let output = settings.path().join("elsewhere.json");
    let file = text(&output);
    let elsewhere = [&small[..], &["--output", &file]].concat();
    let again = tune(&elsewhere);
    assert!(!again.stderr.contains("ignoring"), "{again:?}");
    again.succeeds();
    assert!(output.exists());
    kept["lowbit"] = "0.0.1".into();
    std::fs::write(&path, kept.to_string()).unwrap();
    let old = tune(&elsewhere);
    assert!(old.stderr.contains("lowbit 0.0.1") && old.stderr.contains("lowbit tune"), "{old:?}");
    std::fs::write(&path, "{").unwrap();

    let forgotten = tune(&["--reset"]);
    assert!(forgotten.stderr.contains(name.as_str()), "{forgotten:?}");
    assert!(forgotten.stdout.contains("Forgot"), "{forgotten:?}");
    assert!(names(&directory).is_empty());
}

#[test]
fn there_is_nothing_to_tune_on_a_processor() {
    lowbit(&["tune", "--device", "cpu"]).fails(1, &["GPU", "lowbit devices"]);
    lowbit(&["tune", "--rows", "0"]).fails(2, &["--rows"]);
    lowbit(&["tune", "--reset", "--rows", "1"]).fails(2, &["--reset"]);
}
