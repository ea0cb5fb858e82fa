//! Optimizers: bitsandbytes' steps, and every instruction set against the specification.

use half::{bf16, f16};
use lowbit::conformance::Rng;
use lowbit::cpu::Isa;
use lowbit::optim::{BLOCK_SIZE, Moment, Owned, Rule, Settings, State, reference};
use lowbit::{Cpu, DType, Element};

use super::golden::{bytes, f32s};

/// What the golden optimizers were made with, beside the defaults.
fn golden_settings(name: &str) -> (Rule, Settings) {
    let rule = match name {
        "adamw" => Rule::Adam,
        "sgd" => Rule::Momentum,
        name => Rule::by_name(name).unwrap(),
    };
    let usual = Settings::of(rule);
    let weight_decay = if matches!(name, "adamw" | "lion") { 0.1 } else { usual.weight_decay };
    (rule, Settings { lr: 1e-2, weight_decay, ..usual })
}

#[test]
fn golden_steps_are_those_of_bitsandbytes() {
    for name in ["adam", "adamw", "lion", "sgd", "rmsprop", "adagrad", "ademamix"] {
        let (rule, settings) = golden_settings(name);
        let tensor = |what: &str| f32s(&format!("opt.{name}8bit.{what}"));
        let mut p = tensor("p0");
        let mut state = State::new(rule, p.len());
        for step in 0..3 {
            let g = tensor(&format!("g{step}"));
            Cpu::best().optimizer_step(&settings, &mut state, &mut p, &g).unwrap();
            let expected = tensor(&format!("p{}", step + 1));
            for (i, (e, g)) in expected.iter().zip(&p).enumerate() {
                // CUDA's divisions and powers are fast ones: 5e-5 of an update of 1e-2.
                assert!((e - g).abs() < 2e-6, "{name} step {step} number {i}: {e} {g}");
            }
        }
        let (mut codes, mut absmax) = (Vec::new(), Vec::new());
        for moment in state.parts() {
            let Owned::Bits8 { codes: c, absmax: a } = moment else { panic!("{name} in f32") };
            codes.extend_from_slice(c);
            absmax.extend_from_slice(a);
        }
        let states = |what: &str| {
            let second = format!("opt.{name}8bit.state.{what}2");
            let has_second = rule.moments().len() > 1;
            let first = bytes(&format!("opt.{name}8bit.state.{what}1")).to_vec();
            let second = if has_second { bytes(&second) } else { &[] };
            [&first, second].concat()
        };
        assert!(codes == states("state"), "{name}: codes differ");
        let expected: Vec<f32> = states("absmax")
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect();
        assert_eq!(expected.len(), absmax.len());
        for (e, g) in expected.iter().zip(&absmax) {
            assert!((e / g - 1.0).abs() < 3e-7, "{name}: absmax {e} {g}");
        }
    }
}

/// Settings that use every term, and plain ones.
fn variants(rule: Rule) -> [Settings; 3] {
    let usual = Settings::of(rule);
    [
        usual.clone(),
        Settings {
            lr: 3e-3,
            weight_decay: 0.05,
            grad_scale: 0.37,
            dampening: 0.2,
            nesterov: true,
            ..usual.clone()
        },
        Settings { lr: 0.1, max_update_norm: 0.02, ..usual },
    ]
}

/// Gradients of all sizes, some of them none, one in a while not a number.
fn gradients<T: Element>(rng: &mut Rng, len: usize) -> Vec<T> {
    let strange = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 3e30];
    (0..len)
        .map(|i| {
            let size = 10f32.powi(-(rng.below(12) as i32));
            let v = match rng.below(1000) {
                0 => strange[rng.below(4)],
                1..100 => 0.0,
                _ => rng.normal() * size,
            };
            T::from_f32(if i / BLOCK_SIZE == 2 { 0.0 } else { v })
        })
        .collect()
}

/// Equal bits; one NaN is as good as another.
fn same<T: Element>(a: &[T], b: &[T]) -> Result<(), String> {
    let bits = |v: &T| if v.to_f32().is_nan() { u32::MAX } else { v.to_f32().to_bits() };
    match a.iter().zip(b).position(|(a, b)| bits(a) != bits(b)) {
        Some(i) => Err(format!("number {i}: {} {}", a[i].to_f32(), b[i].to_f32())),
        None => Ok(()),
    }
}

fn same_state(a: &State, b: &State) -> Result<(), String> {
    for (i, pair) in a.parts().iter().zip(b.parts()).enumerate() {
        match pair {
            (Owned::F32(a), Owned::F32(b)) => {
                same(a, b).map_err(|why| format!("moment {i}, {why}"))?;
            }
            (Owned::Bits8 { codes, absmax }, Owned::Bits8 { codes: c, absmax: a }) => {
                same(absmax, a).map_err(|why| format!("absmax {i}, {why}"))?;
                if let Some(at) = codes.iter().zip(c).position(|(a, b)| a != b) {
                    return Err(format!("moment {i}, code {at}: {} {}", codes[at], c[at]));
                }
            }
            _ => return Err("widths differ".into()),
        }
    }
    Ok(())
}

fn agrees<T: Element>(cpu: Cpu, rule: Rule, settings: &Settings, len: usize, start: State) {
    let mut rng = Rng(len as u64 + 7);
    let mut fast: Vec<T> = (0..len).map(|_| T::from_f32(rng.normal())).collect();
    let mut slow = fast.clone();
    let (mut fast_state, mut slow_state) = (start.clone(), start);
    for step in 1..=4 {
        let mut g = gradients::<T>(&mut rng, len);
        if settings.max_update_norm > 0.0 {
            g.iter_mut().filter(|g| !g.to_f32().is_finite()).for_each(|g| *g = T::default());
        }
        cpu.optimizer_step(settings, &mut fast_state, &mut fast, &g).unwrap();
        let mut moments = slow_state.moments();
        reference::update(rule, settings, step, &mut slow, &g, &mut moments).unwrap();
        let outcome = same(&fast, &slow).and(same_state(&fast_state, &slow_state));
        let (isa, dtype) = (cpu.isa().name(), T::DTYPE);
        assert_eq!(outcome, Ok(()), "{isa} {rule:?} {dtype} of {len}, step {step}, {settings:?}");
    }
}

/// Short, and without f16, for the emulator of `scripts/test-avx512`.
#[test]
fn quick_steps_are_those_of_the_specification() {
    for isa in Isa::available() {
        for rule in Rule::ALL {
            let [usual, all, _] = variants(rule);
            agrees::<f32>(Cpu::with(isa), rule, &usual, 1000, State::new_8bit(rule, 1000));
            agrees::<bf16>(Cpu::with(isa), rule, &all, 300, State::new_8bit(rule, 300));
            agrees::<f32>(Cpu::with(isa), rule, &all, 300, State::new_f32(rule, 300));
        }
    }
}

#[test]
fn every_instruction_set_takes_the_steps_of_the_specification() {
    for isa in Isa::available() {
        let cpu = Cpu::with(isa);
        for rule in Rule::ALL {
            for (i, settings) in variants(rule).iter().enumerate() {
                for len in [0, 1, 31, 256, 300, 1000, 4096 + 129] {
                    let states = [State::new_f32(rule, len), State::new_8bit(rule, len)];
                    for (j, state) in states.into_iter().enumerate() {
                        match DType::ALL[(i + j + len) % 3] {
                            DType::F32 => agrees::<f32>(cpu, rule, settings, len, state),
                            DType::F16 => agrees::<f16>(cpu, rule, settings, len, state),
                            DType::BF16 => agrees::<bf16>(cpu, rule, settings, len, state),
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn threads_and_pieces_do_not_change_a_step() {
    let len = 3 * 65536 + 77;
    let settings = Settings { max_update_norm: 0.5, ..Settings::of(Rule::Adam) };
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let mut rng = Rng(5);
        let mut p: Vec<f32> = (0..len).map(|_| rng.normal()).collect();
        let g: Vec<f32> = (0..len).map(|_| rng.normal()).collect();
        let mut state = State::new(Rule::Adam, len);
        let step = || Cpu::best().optimizer_step(&settings, &mut state, &mut p, &g);
        pool.install(step).unwrap();
        (p, state)
    };
    let (one, four) = (run(1), run(4));
    assert_eq!(same(&one.0, &four.0).and(same_state(&one.1, &four.1)), Ok(()));
}

#[test]
fn training_resumes_to_the_bit() {
    for rule in Rule::ALL {
        for start in [State::new_f32(rule, 5000), State::new_8bit(rule, 5000)] {
            let mut rng = Rng(11);
            let g: Vec<Vec<f32>> =
                (0..6).map(|_| (0..5000).map(|_| rng.normal()).collect()).collect();
            let settings = Settings { weight_decay: 0.01, ..Settings::of(rule) };
            let (mut p, mut state) = (vec![0.1f32; 5000], start);
            let mut saved = None;
            for (i, g) in g.iter().enumerate() {
                if i == 3 {
                    saved = Some((p.clone(), state.step(), state.parts().to_vec()));
                }
                Cpu::best().optimizer_step(&settings, &mut state, &mut p, g).unwrap();
            }
            let (mut q, step, parts) = saved.unwrap();
            let mut resumed = State::from_parts(rule, step, parts).unwrap();
            for g in &g[3..] {
                Cpu::best().optimizer_step(&settings, &mut resumed, &mut q, g).unwrap();
            }
            assert_eq!(p, q);
            assert_eq!(state, resumed);
        }
    }
}

#[test]
fn a_step_reduces_a_loss() {
    // |p - target|^2 / 2, whose gradient is p - target.
    let len = 4096;
    for rule in Rule::ALL {
        let mut rng = Rng(2);
        let target: Vec<f32> = (0..len).map(|_| rng.normal()).collect();
        let mut p = vec![0.0f32; len];
        let mut state = State::new(rule, len);
        let loss = |p: &[f32]| p.iter().zip(&target).map(|(p, t)| (p - t).powi(2)).sum::<f32>();
        let before = loss(&p);
        let settings = Settings { lr: 0.02, weight_decay: 0.0, ..Settings::of(rule) };
        for _ in 0..200 {
            let g: Vec<f32> = p.iter().zip(&target).map(|(p, t)| p - t).collect();
            Cpu::best().optimizer_step(&settings, &mut state, &mut p, &g).unwrap();
        }
        let share = loss(&p) / before;
        assert!(share < 0.5, "{rule:?}: {share} of the loss is left");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let cpu = Cpu::best();
    let settings = Settings::of(Rule::Adam);
    let mut p = vec![0.0f32; 300];
    let mut refuse = |settings: &Settings, step, g: usize, moments: &mut [Moment<'_>]| {
        let before = p.clone();
        let outcome =
            cpu.optimizer_update(Rule::Adam, settings, step, &mut p, &vec![1.0; g], moments);
        assert_eq!(p, before);
        outcome.unwrap_err().to_string()
    };
    let mut state = State::new_8bit(Rule::Adam, 300);
    let why = refuse(&settings, 1, 299, &mut state.moments());
    assert!(why.contains("expected a gradient of 300 numbers, got 299"), "{why}");
    let why = refuse(&settings, 1, 300, &mut state.moments()[..1]);
    assert!(why.contains("2 moments for adam, got 1"), "{why}");
    let why = refuse(&settings, 1, 300, &mut State::new_8bit(Rule::Adam, 256).moments());
    assert!(why.contains("moments of 300 numbers, got 256 codes and 1 absmax"), "{why}");
    let (mut numbers, mut codes, mut absmax) = (vec![0.0; 300], vec![0; 300], vec![0.0; 2]);
    let mixed =
        &mut [Moment::F32(&mut numbers), Moment::Bits8 { codes: &mut codes, absmax: &mut absmax }];
    let why = refuse(&settings, 1, 300, mixed);
    assert!(why.contains("moments of one width"), "{why}");
    let why = refuse(&settings, 0, 300, &mut state.moments());
    assert!(why.contains("steps counted from 1"), "{why}");
    let strange = Settings { beta2: 1.0, ..settings };
    let why = refuse(&strange, 1, 300, &mut state.moments());
    assert!(why.contains("beta2 from 0 to less than 1, got 1"), "{why}");
    let damaged = vec![Owned::Bits8 { codes: vec![0; 10], absmax: vec![f32::NAN] }; 2];
    assert!(State::from_parts(Rule::Adam, 1, damaged).is_err());
    assert!(Rule::by_name("sophia").unwrap_err().to_string().contains("lamb"));
}
