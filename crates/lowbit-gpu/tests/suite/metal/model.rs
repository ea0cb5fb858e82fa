//! A whole model on the stand-in.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use lowbit::device::Device;
use lowbit::{Cpu, CpuDevice, DType};
use lowbit_gpu::GpuDevice;
use lowbit_llm::generate::{Options, Session};
use lowbit_llm::sampling::Sampling;
use lowbit_llm::{Checkpoint, Model, Tokenizer};

use super::standin::{Mode, Recorder, StandIn};
use crate::skipped;

/// What the shipped model says next.
fn answer(device: impl Device + 'static) -> lowbit_llm::Result<Vec<u32>> {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models");
    let prompt = Tokenizer::open(&models.join("tinybard"))?.encode("ROMEO:\nWhat is")?;
    let checkpoint = Checkpoint::open(&models.join("tinybard-nf4dq"))?;
    let model = Model::load(&checkpoint, Arc::new(device), &mut |_, _| {})?;
    let mut session = Session::new(&model, 64)?;
    let sampling = Sampling::GREEDY;
    let options = Options { max_new_tokens: 16, sampling, eos_token_ids: Vec::new() };
    let on_token = &mut |_| ControlFlow::Continue(());
    Ok(session.generate(&prompt, &options, on_token)?.tokens)
}

#[test]
fn greedy_tokens_are_those_of_the_cpu() {
    if skipped() {
        return;
    }
    for dtype in [DType::F32, DType::BF16] {
        let expected = answer(CpuDevice::new(Cpu::best(), dtype)).unwrap();
        let queue = StandIn::new(Mode::FAST);
        let record = |recorder: &Recorder| {
            let device = GpuDevice::new(recorder.clone(), "recorder", dtype);
            answer(device).expect("kernels are made");
        };
        queue.prepare(record).expect("every kernel is translated and compiled");
        let got = answer(GpuDevice::new(queue, "metal", dtype)).unwrap();
        assert_eq!(got, expected, "{dtype}");
    }
}
