//! Help, completions, and the commands that need no model.

use std::process::{Command, Stdio};

use lowbit::formats;

use crate::support::{Run, command, finish, lowbit, root, temp, text};

const COMMANDS: [&str; 13] = [
    "demo",
    "quantize",
    "dequantize",
    "inspect",
    "eval",
    "generate",
    "chat",
    "bench",
    "formats",
    "devices",
    "check",
    "tune",
    "completions",
];

#[test]
fn every_command_explains_itself_with_examples() {
    let all = lowbit(&["--help"]).succeeds();
    for name in COMMANDS {
        assert!(all.contains(&format!("  {name} ")), "{name} is not in: {all}");
        if name == "bench" {
            continue;
        }
        let help = lowbit(&[name, "--help"]).succeeds();
        assert!(help.contains("Usage: lowbit "), "{help}");
        assert!(help.contains(&format!("Examples:\n  lowbit {name}")), "{help}");
    }
    for name in ["quantize", "dequantize", "linear", "model"] {
        let help = lowbit(&["bench", name, "--help"]).succeeds();
        assert!(help.contains(&format!("Examples:\n  lowbit bench {name}")), "{help}");
    }
}

#[test]
fn the_version_is_the_packages() {
    let version = format!("lowbit {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(lowbit(&["--version"]).succeeds(), version);
}

#[test]
fn without_a_command_there_is_help_and_status_2() {
    for arguments in [&[][..], &["bench"]] {
        let Run { status, stdout, stderr } = lowbit(arguments);
        assert_eq!((status, stdout.as_str()), (Some(2), ""));
        assert!(stderr.contains("Usage: lowbit"), "{stderr}");
    }
}

#[test]
fn usage_errors_are_one_line_and_status_2() {
    let cases: [(&[&str], &[&str]); 18] = [
        (&["quantise"], &["quantise", "quantize"]),
        (&["quantize"], &["<IN>", "<OUT>"]),
        (&["quantize", "a", "b", "--format", "nf5"], &["nf5", "--format", "nf4", "mxfp4"]),
        (&["quantize", "a", "b", "--block-size", "48"], &["48", "nf4", "32, 64"]),
        (&["quantize", "a", "b", "--block-size", "-1"], &["-1"]),
        (&["quantize", "a", "b", "--format", "int8", "--block-size", "64"], &["int8", "a row"]),
        (
            &["quantize", "a", "b", "--format", "mxfp4", "--double-quant"],
            &["mxfp4", "small already"],
        ),
        (&["quantize", "a", "b", "--skip", "layers.("], &["layers.(", "unclosed group"]),
        (&["quantize", "a", "b", "--threads", "0"], &["--threads", "1..=1024"]),
        (&["dequantize", "a", "b", "--dtype", "f64"], &["f64", "bf16"]),
        (&["eval", "a"], &["--text"]),
        (&["eval", "a", "--text", "b", "--window", "1"], &["--window", "2 or more"]),
        (&["generate", "a", "--prompt", "x", "--top-p", "1.5"], &["--top-p", "at most 1"]),
        (&["generate", "a", "--prompt", "x", "--temperature", "nan"], &["--temperature"]),
        (&["bench", "linear", "--shape", "4096"], &["4096", "NxK"]),
        (&["bench", "linear", "--rows", "1,0"], &["--rows"]),
        (&["bench", "linear", "--seconds", "1e30"], &["--seconds", "3600"]),
        (&["formats", "--markdown", "--json"], &["--markdown", "--json"]),
    ];
    for (arguments, words) in cases {
        lowbit(arguments).fails(2, words);
    }
}

#[test]
fn formats_lists_the_whole_table() {
    let rows = lowbit(&["formats", "--json"]).json();
    let listed = rows.as_array().expect("a list");
    assert_eq!(listed.len(), formats::ALL.len());
    let plain = lowbit(&["formats"]).succeeds();
    let markdown = lowbit(&["formats", "--markdown"]).succeeds();
    assert_eq!(markdown.lines().count(), formats::ALL.len() + 2);
    for (row, format) in listed.iter().zip(formats::ALL) {
        assert_eq!(row["name"], format.name);
        let bits = row["bits_per_weight"].as_f64().expect("a number");
        for text in [&plain, &markdown] {
            let line = text.lines().find(|line| line.contains(format.about)).expect("its line");
            assert!(line.contains(format.name) && line.contains(&format!("{bits:.3}")), "{line}");
        }
    }
    assert_eq!(listed[0]["name"], "nf4");
    assert_eq!(listed[0]["bits_per_weight"], 4.5);
    let double = listed[0]["bits_per_weight_double_quantized"].as_f64().expect("a number");
    assert!((double - 4.127).abs() < 1e-3, "{double}");
}

/// `lowbit formats --markdown` makes the table in the README.
#[test]
fn the_readme_has_the_table_of_formats() {
    let readme = std::fs::read_to_string(root().join("README.md")).expect("the README");
    let (_, rest) = readme.split_once("<!-- formats:begin -->\n").expect("its begin");
    let (table, _) = rest.split_once("<!-- formats:end -->").expect("its end");
    assert_eq!(table, lowbit(&["formats", "--markdown"]).succeeds());
}

#[test]
fn check_writes_what_it_found() {
    let directory = temp();
    let path = directory.path().join("check.json");
    let arguments = ["check", "--device", "cpu", "--seconds", "0.01", "--output", &text(&path)];
    let said = lowbit(&arguments).succeeds();
    assert!(said.contains("as they should be"), "{said}");
    let file = std::fs::read(&path).expect("the file");
    let found: serde_json::Value = serde_json::from_slice(&file).expect("JSON");
    assert!(found["cases"].as_u64() > Some(1000), "{found}");
    assert_eq!(found["failures"], serde_json::json!([]));
    assert_eq!(found["measured"].as_array().map(Vec::len), Some(8));
    lowbit(&["check", "--device", "cpu", "--output", "/none/such"]).fails(1, &["/none/such"]);
}

#[test]
fn devices_tells_of_the_processor() {
    let devices = lowbit(&["devices", "--json"]).json();
    let cpu = &devices[0];
    assert_eq!(cpu["device"], "cpu");
    let sets = cpu["instruction_sets"].as_array().expect("a list");
    assert_eq!(sets.last().expect("one"), "portable");
    assert!(cpu["threads"].as_u64() > Some(0) && cpu["memory_bytes"].as_u64() > Some(1 << 20));
    assert!(lowbit(&["devices"]).succeeds().contains("portable"));
    let all = devices.as_array().expect("a list");
    assert_eq!(all.iter().filter(|device| device["auto"] == true).count(), 1);
    assert!(all.iter().all(|device| device["kind"] != "software" || device["auto"] == false));
}

#[test]
fn completions_know_commands_and_formats() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = lowbit(&["completions", shell]).succeeds();
        assert!(script.contains("dequantize") && script.contains("double-quant"), "{shell}");
        // The others complete no values.
        let completes_values = ["bash", "zsh", "fish"].contains(&shell);
        assert!(!completes_values || script.contains("mxfp4"), "{shell}");
    }
    lowbit(&["completions", "tcl"]).fails(2, &["tcl", "bash"]);
}

#[test]
fn colours_respect_the_users_wish() {
    let coloured = |variables: &[(&str, &str)]| {
        let mut command = command(&["formats"]);
        command.envs(variables.iter().copied());
        finish(&mut command).stdout.contains('\u{1b}')
    };
    assert!(coloured(&[("CLICOLOR_FORCE", "1")]));
    assert!(!coloured(&[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")]));
    assert!(!coloured(&[]));
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_told() {
    let mut command = command(&["formats"]);
    command.stdout(std::fs::File::create("/dev/full").expect("Linux has it"));
    finish(&mut command).fails(1, &["could not write the output", "No space"]);
}

#[cfg(unix)]
#[test]
fn a_reader_that_leaves_is_no_error() {
    // The shell's pipe breaks long before all has been written.
    let program = env!("CARGO_BIN_EXE_lowbit");
    let script = format!("'{program}' completions bash; echo $? >&2");
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(format!("({script}) | true")).stdin(Stdio::null());
    let output = shell.output().expect("a shell");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "0\n");
}
