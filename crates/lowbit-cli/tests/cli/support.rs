//! Running the command, and making files for it.

use std::borrow::Cow;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;
use tempfile::TempDir;

/// What a run of the command left.
#[derive(Debug)]
pub struct Run {
    pub status: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// The command, in the root of the repository, away from any terminal.
pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lowbit"));
    command.args(arguments).current_dir(root()).stdin(Stdio::null());
    for variable in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE"] {
        command.env_remove(variable);
    }
    // What its user has tuned is not for tests.
    command.env("XDG_CONFIG_HOME", concat!(env!("CARGO_TARGET_TMPDIR"), "/no-settings"));
    command
}

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

pub fn finish(command: &mut Command) -> Run {
    let output = command.output().expect("the command starts");
    let text = |bytes| String::from_utf8(bytes).expect("the command writes UTF-8");
    Run { status: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// What `--device` takes for the last GPU that is listed; `None` if the GPU tests are to be left out.
pub fn gpu() -> Option<String> {
    if std::env::var_os("LOWBIT_SKIP_GPU").is_some_and(|v| v == "1") {
        #[expect(clippy::print_stderr, reason = "says what it skips")]
        {
            eprintln!("skipped: LOWBIT_SKIP_GPU=1");
        }
        return None;
    }
    let devices = lowbit(&["devices", "--json"]).json();
    let last = devices.as_array().and_then(|all| all[1..].last());
    let device = last.expect("a GPU; scripts/gpu-setup brings one, LOWBIT_SKIP_GPU=1 skips");
    device["device"].as_str().map(str::to_owned)
}

pub fn lowbit(arguments: &[&str]) -> Run {
    finish(&mut command(arguments))
}

/// Starts the command with open pipes.
pub fn start(arguments: &[&str]) -> Child {
    let mut command = command(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("the command starts")
}

/// Runs the command with that text on its stdin.
pub fn lowbit_with_input(arguments: &[&str], input: &str) -> Run {
    let mut child = start(arguments);
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(input.as_bytes()).expect("the command reads");
    drop(stdin);
    let output = child.wait_with_output().expect("the command ends");
    let text = |bytes| String::from_utf8(bytes).expect("the command writes UTF-8");
    Run { status: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

impl Run {
    /// It succeeded, and said nothing on stderr.
    #[track_caller]
    pub fn succeeds(self) -> String {
        assert_eq!((self.status, self.stderr.as_str()), (Some(0), ""), "{}", self.stdout);
        assert!(!self.stdout.contains('\u{1b}'), "escape codes: {:?}", self.stdout);
        self.stdout
    }

    /// It succeeded and printed one JSON document.
    #[track_caller]
    pub fn json(self) -> Value {
        serde_json::from_str(&self.succeeds()).expect("JSON")
    }

    /// It failed with that status and one line on stderr that has all those words.
    #[track_caller]
    pub fn fails(self, status: i32, words: &[&str]) {
        let Run { status: got, stdout, stderr } = self;
        assert_eq!((got, stdout.as_str()), (Some(status), ""), "{stderr}");
        assert!(stderr.starts_with("error: "), "{stderr}");
        assert_eq!(stderr.matches('\n').count(), 1, "{stderr}");
        assert!(!stderr.contains('\u{1b}'), "escape codes: {stderr:?}");
        for word in words {
            assert!(stderr.contains(word), "no {word:?} in: {stderr}");
        }
    }
}

pub fn temp() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

/// A path as an argument.
pub fn text(path: &Path) -> Cow<'_, str> {
    path.to_string_lossy()
}

/// Names in a directory, hidden ones too, sorted.
pub fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).expect("a directory");
    let name = |entry: std::io::Result<std::fs::DirEntry>| {
        entry.expect("an entry").file_name().to_string_lossy().into_owned()
    };
    let mut names: Vec<String> = entries.map(name).collect();
    names.sort();
    names
}

/// Writes a safetensors file of f32 tensors.
pub fn write_tensors(path: &Path, tensors: &[(&str, &[usize], &[f32])]) {
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, _, numbers)| numbers.iter().flat_map(|x| x.to_le_bytes()).collect())
        .collect();
    let views = tensors.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
        let view = TensorView::new(Dtype::F32, shape.to_vec(), bytes).expect("a tensor");
        (name.to_string(), view)
    });
    safetensors::serialize_to_file(views, None, path).expect("a file");
}

/// Numbers that no format represents exactly.
pub fn wave(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i as f32 * 0.37).sin() * 0.1).collect()
}
