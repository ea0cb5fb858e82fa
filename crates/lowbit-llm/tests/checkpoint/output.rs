//! Outputs are whole or not there, and inputs survive.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lowbit::formats;
use lowbit_llm::convert::{Progress, QuantizeOptions, Report, quantize};
use lowbit_llm::{Checkpoint, Error};

use super::support::{Tensor, golden, write};

fn options(force: bool) -> QuantizeOptions {
    let mut options = QuantizeOptions::new(formats::by_name("nf4").unwrap());
    options.write.force = force;
    options
}

fn run(input: &Path, output: &Path, force: bool) -> lowbit_llm::Result<Report> {
    quantize(input, output, &options(force), &())
}

#[track_caller]
fn refused(input: &Path, output: &Path, force: bool, part: &str) {
    let error = run(input, output, force).expect_err("it was accepted").to_string();
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(error.contains(part), "no {part:?} in: {error}");
}

fn listing(dir: &Path) -> Vec<String> {
    let name = |e: std::io::Result<fs::DirEntry>| e.unwrap().file_name().into_string().unwrap();
    let mut names: Vec<String> = fs::read_dir(dir).unwrap().map(name).collect();
    names.sort();
    names
}

/// A directory with the tiny model in `in`, as files of its own.
fn workplace() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("in"), dir.path().join("out"));
    fs::create_dir(&input).unwrap();
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        fs::copy(golden("tiny-bf16").join(file), input.join(file)).unwrap();
    }
    (dir, input, output)
}

#[test]
fn what_exists_is_replaced_only_when_forced() {
    let (dir, input, output) = workplace();
    run(&input, &output, false).unwrap();
    refused(&input, &output, false, "a directory that exists; choose another, or force");
    fs::write(output.join("old.txt"), "old").unwrap();
    run(&input, &output, true).unwrap();
    assert!(!output.join("old.txt").exists(), "replaced as a whole");
    assert_eq!(Checkpoint::open(&output).unwrap().entries().len(), 21);
    assert_eq!(listing(dir.path()), ["in", "out"]);

    let (file, copy) = (input.join("model.safetensors"), dir.path().join("copy.safetensors"));
    run(&file, &copy, false).unwrap();
    refused(&file, &copy, false, "a file that exists");
    fs::write(&copy, "old").unwrap();
    run(&file, &copy, true).unwrap();
    assert_eq!(Checkpoint::open(&copy).unwrap().entries().len(), 21);
    assert_eq!(listing(dir.path()), ["copy.safetensors", "in", "out"]);
}

#[test]
fn only_an_output_of_the_same_kind_is_replaced() {
    let (dir, input, output) = workplace();
    let file = dir.path().join("a.safetensors");
    fs::write(&file, "precious").unwrap();
    refused(&input, &file, true, "expected a directory, as the input is");
    fs::create_dir(&output).unwrap();
    refused(&input.join("model.safetensors"), &output, true, "expected a file, as the input is");
    run(&input, &output, true).expect("an empty directory may be replaced");

    let home = dir.path().join("home");
    fs::create_dir_all(home.join("photos")).unwrap();
    fs::write(home.join("model.safetensors"), "").unwrap();
    refused(&input, &home, true, "a directory that holds other things; remove it yourself");
    fs::remove_dir(home.join("photos")).unwrap();
    fs::rename(home.join("model.safetensors"), home.join("letter.txt")).unwrap();
    refused(&input, &home, true, "a directory that holds other things");
    assert_eq!(listing(&home), ["letter.txt"]);
    assert_eq!(fs::read(&file).unwrap(), b"precious");
}

#[test]
fn an_output_that_overlaps_its_input_is_refused() {
    let (dir, input, _) = workplace();
    let before = listing(&input);
    let shares = "an output apart from its input";
    refused(&input, &input, true, shares);
    refused(&input, &input.join("out"), true, shares);
    refused(&input, dir.path(), true, shares);
    refused(&input, &dir.path().join("in/../in"), true, shares);
    let file = input.join("model.safetensors");
    refused(&file, &file, true, shares);
    refused(&file, &input, true, shares);
    refused(&input, &dir.path().join(".."), true, "a path that ends in a name");
    refused(&input, &dir.path().join("no/such/out"), false, "could not find the directory");
    #[cfg(unix)]
    {
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&input, &link).unwrap();
        refused(&input, &link, true, shares);
        refused(&link, &input, true, shares);
        let shard = dir.path().join("links");
        fs::create_dir(&shard).unwrap();
        std::os::unix::fs::symlink(&file, shard.join("model.safetensors")).unwrap();
        // As in the cache of downloaded models: the directory is one place, its weights another.
        refused(&shard, &input, true, shares);
        run(&shard, &dir.path().join("out"), false).unwrap();
    }
    assert_eq!(listing(&input), before);
    assert_eq!(fs::read(&file).unwrap(), fs::read(golden("tiny-bf16/model.safetensors")).unwrap());
}

#[test]
fn the_other_files_of_a_model_come_along() {
    let (_dir, input, output) = workplace();
    let kept = ["chat_template.jinja", "generation_config.json", "merges.txt", "tokenizer.model"];
    let dropped = [
        ".gitattributes",
        "consolidated.safetensors",
        "model.gguf",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
    ];
    for name in kept.iter().chain(&dropped) {
        fs::write(input.join(name), name).unwrap();
    }
    fs::create_dir(input.join("original")).unwrap();
    run(&input, &output, false).unwrap();
    let mut expected = ["config.json", "model.safetensors", "tokenizer.json"].to_vec();
    expected.extend(kept);
    expected.sort_unstable();
    assert_eq!(listing(&output), expected);
    for name in kept {
        assert_eq!(fs::read(output.join(name)).unwrap(), name.as_bytes());
    }
}

#[cfg(unix)]
#[test]
fn others_may_read_what_was_written() {
    use std::os::unix::fs::PermissionsExt;
    let (dir, input, output) = workplace();
    run(&input, &output, false).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let (plain_file, plain_dir) = (dir.path().join("file"), dir.path().join("dir"));
    fs::write(&plain_file, "").unwrap();
    fs::create_dir(&plain_dir).unwrap();
    assert_eq!(mode(&output), mode(&plain_dir));
    assert_eq!(mode(&output.join("model.safetensors")), mode(&plain_file));
}

/// Counts, and stops the conversion after some tensors.
struct StopAfter {
    tensors: u64,
    seen: AtomicU64,
    bytes: AtomicU64,
}

impl Progress for StopAfter {
    fn update(&self, done: u64, total: u64, name: &str) {
        assert!(done <= total && !name.is_empty());
        self.seen.fetch_add(1, Ordering::SeqCst);
        self.bytes.fetch_max(done, Ordering::SeqCst);
    }

    fn cancelled(&self) -> bool {
        self.seen.load(Ordering::SeqCst) >= self.tensors
    }
}

#[test]
fn a_run_that_is_stopped_leaves_nothing() {
    let (dir, input, output) = workplace();
    let watch = |tensors| StopAfter { tensors, seen: 0.into(), bytes: 0.into() };
    let error = quantize(&input, &output, &options(false), &watch(5)).unwrap_err();
    assert!(matches!(error, Error::Cancelled), "{error}");
    assert_eq!(listing(dir.path()), ["in"]);

    let all = watch(u64::MAX);
    let report = quantize(&input, &output, &options(false), &all).unwrap();
    assert_eq!(all.seen.into_inner(), 21);
    assert_eq!(all.bytes.into_inner(), report.bytes_before);
}

#[test]
fn a_run_that_fails_leaves_the_older_output() {
    let (dir, input, output) = workplace();
    run(&input, &output, false).unwrap();
    let older = fs::read(output.join("model.safetensors")).unwrap();
    let mut bad = Tensor::weights("model.layers.0.mlp.up_proj.weight", &[8, 32]);
    bad.data[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    write(&input.join("model.safetensors"), &[bad]);
    refused(&input, &output, true, "expected finite values, got NaN at index 0");
    assert_eq!(fs::read(output.join("model.safetensors")).unwrap(), older);
    assert_eq!(listing(dir.path()), ["in", "out"]);
}

/// What the children of the tests below run: a conversion that says how far it came in files beside
/// its output, and waits there if a file asks it to.
struct Child {
    output: PathBuf,
}

impl Progress for Child {
    fn update(&self, _done: u64, _total: u64, _name: &str) {
        if self.output.with_extension("wait").exists() {
            fs::write(self.output.with_extension("begun"), "").unwrap();
            std::thread::sleep(Duration::from_secs(600));
        }
    }
}

const CHILD: &str = "LOWBIT_TEST_CHILD";

#[test]
#[ignore = "the tests below run it, in a process of its own"]
fn child() {
    let dir = PathBuf::from(std::env::var_os(CHILD).expect("set by the parent"));
    let (input, output) = (dir.join("in"), dir.join("out"));
    let child = Child { output: output.clone() };
    let message = match quantize(&input, &output, &options(true), &child) {
        Ok(_) => "done".to_owned(),
        Err(error) => error.to_string(),
    };
    fs::write(output.with_extension("message"), message).unwrap();
}

/// A command that runs [`child`] on `dir` after a line of shell.
#[cfg(unix)]
fn child_after(shell: &str, dir: &Path) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{shell} exec \"$0\" \"$@\"")]);
    command.arg(std::env::current_exe().unwrap());
    command.args(["--exact", "checkpoint::output::child", "--ignored", "--quiet"]);
    command.env(CHILD, dir).stdout(std::process::Stdio::null());
    command
}

#[cfg(unix)]
#[test]
fn a_killed_run_leaves_the_older_output() {
    let (dir, input, output) = workplace();
    run(&input, &output, false).unwrap();
    let older = fs::read(output.join("model.safetensors")).unwrap();
    fs::write(output.with_extension("wait"), "").unwrap();
    let mut child = child_after("", dir.path()).spawn().unwrap();
    let begun = output.with_extension("begun");
    let mut patience = 600;
    while !begun.exists() && patience > 0 {
        std::thread::sleep(Duration::from_millis(50));
        patience -= 1;
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(begun.exists(), "the child never wrote a tensor");
    assert_eq!(fs::read(output.join("model.safetensors")).unwrap(), older);
    let names = listing(dir.path());
    let litter: Vec<&String> = names.iter().filter(|n| n.starts_with(".out")).collect();
    assert_eq!(litter.len(), 1, "half an output, under a name of its own: {names:?}");
    // What is left does not disturb the next run.
    run(&input, &output, true).unwrap();
    assert_eq!(fs::read(output.join("model.safetensors")).unwrap(), older);
}

#[cfg(unix)]
#[test]
fn a_disk_that_fills_up_leaves_the_older_output() {
    let (dir, input, output) = workplace();
    run(&input, &output, false).unwrap();
    let older = fs::read(output.join("model.safetensors")).unwrap();
    // No file may grow beyond 32 or 64 KiB, by the unit of the shell; and no signal says so first.
    let status = child_after("trap '' XFSZ; ulimit -f 64;", dir.path()).status().unwrap();
    assert!(status.success());
    let message = fs::read_to_string(output.with_extension("message")).unwrap();
    assert!(message.starts_with("could not write "), "{message}");
    assert!(message.contains("model.safetensors") && message.contains("too large"), "{message}");
    assert_eq!(fs::read(output.join("model.safetensors")).unwrap(), older);
    assert_eq!(listing(dir.path()), ["in", "out", "out.message"]);
}
