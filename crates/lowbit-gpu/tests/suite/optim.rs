//! Steps of optimizers against the scalar reference.

use half::{bf16, f16};
use lowbit::conformance::Rng;
use lowbit::optim::{BLOCK_SIZE, Owned, Rule, Settings, reference};
use lowbit::{DType, Element, Result, optim};
use lowbit_gpu::optim::{Moment, Optimizer, Parameter, State};
use lowbit_gpu::plan::Planner;
use lowbit_gpu::{Limits, Queue};

use crate::everywhere::{self, On, Test};
use crate::gpu;
use crate::typed::Typed;

/// A few numbers, blocks that end early, and more than a group of threads takes at a time.
const LENGTHS: [usize; 6] = [1, 255, 258, 1001, 1024, 5123];

/// Runs a test on everything.
fn everywhere(test: impl Fn(&dyn Subject)) {
    struct Each<F>(F);
    impl<F: Fn(&dyn Subject)> Test for Each<F> {
        fn run<Q: Queue>(&self, on: On<Q>) {
            (self.0)(&on);
        }
    }
    everywhere::everywhere(&Each(test));
}

/// What takes steps.
trait Subject {
    /// Whether there are no results.
    fn is_recorder(&self) -> bool;
    /// A step of `p` along `g`.
    fn step(
        &self,
        settings: &Settings,
        state: &optim::State,
        p: &Typed,
        g: &Typed,
    ) -> Result<(Typed, optim::State)>;
}

/// What follows a tensor in its last 16 bytes, and is to stay.
const OTHERS: u8 = 0x5a;

fn with_others(bytes: &[u8]) -> Vec<u8> {
    let mut all = bytes.to_vec();
    all.resize(bytes.len().next_multiple_of(16), OTHERS);
    all
}

impl<Q: Queue> Subject for On<Q> {
    fn is_recorder(&self) -> bool {
        self.is_recorder
    }

    fn step(
        &self,
        settings: &Settings,
        state: &optim::State,
        p: &Typed,
        g: &Typed,
    ) -> Result<(Typed, optim::State)> {
        let queue = &self.queue;
        let upload = |bytes: &[u8]| queue.upload(&with_others(bytes));
        let read = |buffer: &Q::Buffer, bytes: usize| -> Result<Vec<u8>> {
            let mut all = queue.read(buffer, bytes.next_multiple_of(16) as u64)?;
            let others = all.split_off(bytes);
            assert!(self.is_recorder || others.iter().all(|b| *b == OTHERS), "{others:?}");
            Ok(all)
        };
        let mut moments = Vec::new();
        for part in state.parts() {
            moments.push(match part {
                Owned::F32(numbers) => Moment::F32(upload(bytemuck::cast_slice(numbers))?),
                Owned::Bits8 { codes, absmax } => Moment::Bits8 {
                    codes: upload(codes)?,
                    absmax: upload(bytemuck::cast_slice(absmax))?,
                },
            });
        }
        let (p_there, g_there) = (upload(&p.bytes)?, upload(&g.bytes)?);
        let len = p.bytes.len() / p.dtype.size();
        let parameter = Parameter { dtype: p.dtype, len, p: &p_there, g: &g_there };
        let optimizer = Optimizer::new(queue, state.rule())?;
        let step = state.step() + 1;
        optimizer.update(queue, settings, step, &parameter, &moments)?;
        let new = Typed { dtype: p.dtype, bytes: read(&p_there, p.bytes.len())? };
        let mut parts = Vec::new();
        for moment in &moments {
            parts.push(match moment {
                Moment::F32(numbers) => {
                    Owned::F32(bytemuck::pod_collect_to_vec(&read(numbers, 4 * len)?))
                }
                Moment::Bits8 { codes, absmax } => {
                    let absmax = read(absmax, 4 * len.div_ceil(BLOCK_SIZE))?;
                    let absmax = bytemuck::pod_collect_to_vec(&absmax);
                    Owned::Bits8 { codes: read(codes, len)?, absmax }
                }
            });
        }
        Ok((new, optim::State::from_parts(state.rule(), step, parts)?))
    }
}

/// The reference's step.
fn expected(
    settings: &Settings,
    state: &optim::State,
    p: &Typed,
    g: &Typed,
) -> (Typed, optim::State) {
    fn typed<T: Element>(
        settings: &Settings,
        state: &mut optim::State,
        p: &mut [u8],
        g: &[u8],
        step: u64,
    ) {
        let mut new: Vec<T> = bytemuck::pod_collect_to_vec(p);
        let g: Vec<T> = bytemuck::pod_collect_to_vec(g);
        let rule = state.rule();
        reference::update(rule, settings, step, &mut new, &g, &mut state.moments()).unwrap();
        p.copy_from_slice(bytemuck::cast_slice(&new));
    }
    let (step, mut state, mut bytes) = (state.step() + 1, state.clone(), p.bytes.clone());
    match p.dtype {
        DType::F32 => typed::<f32>(settings, &mut state, &mut bytes, &g.bytes, step),
        DType::F16 => typed::<f16>(settings, &mut state, &mut bytes, &g.bytes, step),
        DType::BF16 => typed::<bf16>(settings, &mut state, &mut bytes, &g.bytes, step),
    }
    let parts = state.parts().to_vec();
    let state = optim::State::from_parts(state.rule(), step, parts).unwrap();
    (Typed { dtype: p.dtype, bytes }, state)
}

fn eps(dtype: DType) -> f32 {
    match dtype {
        DType::F32 => 4e-7,
        DType::F16 => 1.0 / 1024.0,
        DType::BF16 => 1.0 / 128.0,
    }
}

/// Divisions and roots of a GPU are a few units in the last place off; so are what follows from them,
/// and a code in a hundred.
fn close(what: &str, settings: &Settings, before: &[f32], got: &[f32], expected: &[f32], eps: f32) {
    for (i, ((b, e), g)) in before.iter().zip(expected).zip(got).enumerate() {
        let bound = eps * e.abs() + 1e-5 * (settings.lr as f32 + (e - b).abs());
        assert!((e - g).abs() <= bound, "{what}: number {i} is {g}, not {e}; it was {b}");
    }
}

fn close_states(what: &str, got: &optim::State, expected: &optim::State) {
    for (got, expected) in got.parts().iter().zip(expected.parts()) {
        match (got, expected) {
            (Owned::F32(got), Owned::F32(expected)) => {
                let largest = expected.iter().fold(0.0f32, |most, v| v.abs().max(most));
                for (i, (g, e)) in got.iter().zip(expected).enumerate() {
                    let bound = 2e-6 * e.abs() + 1e-7 * largest;
                    assert!((g - e).abs() <= bound, "{what}: moment {i} is {g}, not {e}");
                }
            }
            (
                Owned::Bits8 { codes, absmax },
                Owned::Bits8 { codes: other_codes, absmax: others },
            ) => {
                for (i, (g, e)) in absmax.iter().zip(others).enumerate() {
                    assert!((g - e).abs() <= 2e-6 * e, "{what}: absmax {i} is {g}, not {e}");
                }
                let apart = |(g, e): (&u8, &u8)| g.abs_diff(*e);
                let most = codes.iter().zip(other_codes).map(apart).max().unwrap_or(0);
                let count = codes.iter().zip(other_codes).filter(|(g, e)| g != e).count();
                assert!(most <= 1 && count <= 1 + codes.len() / 100, "{what}: {count}, by {most}");
            }
            _ => panic!("{what}: moments of another width"),
        }
    }
}

fn settings(rule: Rule) -> Settings {
    Settings {
        lr: 1e-2,
        beta2: 0.99,
        beta3: 0.999,
        weight_decay: 0.1,
        dampening: 0.25,
        nesterov: true,
        grad_scale: 0.5,
        ..Settings::of(rule)
    }
}

fn state(rule: Rule, len: usize, in_codes: bool) -> optim::State {
    if in_codes { optim::State::new_8bit(rule, len) } else { optim::State::new_f32(rule, len) }
}

/// Three steps, each from where the reference got to.
fn three_steps(subject: &dyn Subject, settings: &Settings, mut state: optim::State, dtype: DType) {
    let len = match &state.parts()[0] {
        Owned::F32(numbers) => numbers.len(),
        Owned::Bits8 { codes, .. } => codes.len(),
    };
    let mut rng = Rng(len as u64);
    let mut numbers =
        |factor: f32| -> Vec<f32> { (0..len).map(|_| factor * rng.normal()).collect() };
    let mut p = Typed::new(dtype, &numbers(1.0));
    for step in 1..=3 {
        let g = Typed::new(dtype, &numbers(0.1));
        let (made, new) = subject.step(settings, &state, &p, &g).unwrap();
        let (right, right_state) = expected(settings, &state, &p, &g);
        if !subject.is_recorder() {
            let what = format!("{} {dtype} {len} step {step}", state.rule().name());
            let before = p.numbers();
            close(&what, settings, &before, &made.numbers(), &right.numbers(), eps(dtype));
            close_states(&what, &new, &right_state);
        }
        (p, state) = (right, right_state);
    }
}

#[test]
fn steps_of_every_rule_are_those_of_the_reference() {
    everywhere(|subject| {
        for (r, rule) in Rule::ALL.into_iter().enumerate() {
            for in_codes in [true, false] {
                for (i, len) in LENGTHS.into_iter().enumerate() {
                    let dtype = DType::ALL[(r + i) % 3];
                    three_steps(subject, &settings(rule), state(rule, len, in_codes), dtype);
                }
            }
        }
    });
}

#[test]
fn a_limit_of_the_norm_shortens_a_step() {
    everywhere(|subject| {
        for (rule, in_codes) in
            [(Rule::Adam, false), (Rule::Momentum, false), (Rule::AdEmaMix, true)]
        {
            for (len, most) in [(5123, 0.02), (1, 0.02), (258, 1e6)] {
                let settings = Settings { max_update_norm: most, ..settings(rule) };
                three_steps(subject, &settings, state(rule, len, in_codes), DType::F32);
            }
        }
    });
}

/// The first step of a momentum keeps the gradient itself.
#[test]
fn codes_are_those_of_the_reference_where_numbers_are_the_same() {
    let rule = Rule::Momentum;
    let thresholds = rule.moments()[0].thresholds();
    // A tie at each threshold, what is next to it on either side, and all of it in other sizes.
    let mut numbers = Vec::new();
    for scale in [1.0, 0.37, 2e-3, 1e20, 3e-38, 1e-39] {
        for near in thresholds.chunks(64) {
            let near = near.iter().flat_map(|t| [t.next_down(), *t, t.next_up()]);
            // A subnormal number may count as zero.
            let near = near.map(|t| if t.is_subnormal() { 0.0 } else { t * scale });
            numbers.extend(near);
            numbers.extend([scale, 0.0, -0.0]);
            numbers.resize(numbers.len().next_multiple_of(BLOCK_SIZE), -scale);
        }
    }
    numbers.extend([0.0; BLOCK_SIZE + 3]);
    everywhere(|subject| {
        let state = state(rule, numbers.len(), true);
        let p = Typed::new(DType::F32, &vec![1.0; numbers.len()]);
        let g = Typed::new(DType::F32, &numbers);
        let settings = Settings { lr: 0.5, ..Settings::of(rule) };
        let (_, made) = subject.step(&settings, &state, &p, &g).unwrap();
        let (_, right) = expected(&settings, &state, &p, &g);
        let (Owned::Bits8 { codes, absmax }, Owned::Bits8 { codes: right, absmax: rights }) =
            (&made.parts()[0], &right.parts()[0])
        else {
            panic!("moments of another width")
        };
        if subject.is_recorder() {
            return;
        }
        // Here all of them may.
        let normal = 4 * BLOCK_SIZE * 4;
        assert_eq!(absmax[..16], rights[..16]);
        assert_eq!(absmax[absmax.len() - 2..], [0.0; 2]);
        for (i, (got, right)) in codes[..normal].iter().zip(right).enumerate() {
            assert_eq!(got, right, "{i}: {}", numbers[i]);
        }
    });
}

#[test]
fn a_number_that_is_not_finite_spoils_none_beside_it() {
    everywhere(|subject| {
        for rule in Rule::ALL {
            for dtype in [DType::F32, DType::BF16] {
                let (mut g, len) = (vec![0.1f32; 1001], 1001);
                (g[7], g[300], g[301], g[1000]) = (f32::NAN, f32::INFINITY, -f32::INFINITY, 3e38);
                let settings = Settings { grad_scale: 2.0, ..Settings::of(rule) };
                let (g, state) = (Typed::new(dtype, &g), state(rule, len, true));
                let p = Typed::new(dtype, &vec![0.5; len]);
                let (made, new) = subject.step(&settings, &state, &p, &g).unwrap();
                let (right, right_state) = expected(&settings, &state, &p, &g);
                if !subject.is_recorder() {
                    let what = format!("{} {dtype}", rule.name());
                    let (made, right) = (made.numbers(), right.numbers());
                    close(&what, &settings, &p.numbers(), &made, &right, eps(dtype));
                    assert_eq!(made[7], 0.5);
                    close_states(&what, &new, &right_state);
                }
            }
        }
    });
}

#[test]
fn a_state_goes_to_a_gpu_and_back() {
    let Some(gpu) = gpu(true) else { return };
    for (rule, len) in [(Rule::AdEmaMix, 4099), (Rule::Lion, 100), (Rule::Adam, 0)] {
        let optimizer = Optimizer::new(&gpu, rule).unwrap();
        let mut state = State::new(&gpu, rule, len).unwrap();
        let p = gpu.upload(&vec![0; 4 * len]).unwrap();
        let g = gpu.upload(bytemuck::cast_slice(&vec![0.5f32; len])).unwrap();
        let parameter = Parameter { dtype: DType::F32, len, p: &p, g: &g };
        let settings = Settings::of(rule);
        optimizer.step(&gpu, &settings, &parameter, &mut state).unwrap();
        let here = state.read(&gpu).unwrap();
        assert_eq!(here.step(), 1);
        let back = State::upload(&gpu, &here).unwrap();
        assert_eq!((back.step(), back.len(), back.rule()), (1, len, rule));
        assert_eq!(back.read(&gpu).unwrap(), here);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let limits = Limits { binding: 1 << 20, ..lowbit_gpu::msl::APPLE };
    let planner = Planner::new(limits);
    let settings = Settings::of(Rule::Adam);
    let optimizer = Optimizer::new(&planner, Rule::Adam).unwrap();
    let update = |settings: &Settings, step, len, moments: &[Moment<usize>]| {
        let parameter = Parameter { dtype: DType::F16, len, p: &0, g: &1 };
        optimizer.update(&planner, settings, step, &parameter, moments).map_err(|e| e.to_string())
    };
    let (numbers, codes) = (Moment::F32(2), Moment::Bits8 { codes: 3, absmax: 4 });
    let two = [numbers.clone(), numbers.clone()];
    assert!(update(&settings, 1, 1 << 18, &two).is_ok());
    assert!(update(&settings, 1, 1 << 19, &[codes.clone(), codes.clone()]).is_ok());
    let refused = [
        (update(&settings, 0, 8, &two), "steps counted from 1"),
        (update(&Settings { lr: -1.0, ..settings.clone() }, 1, 8, &two), "lr"),
        (update(&settings, 1, 8, &two[..1]), "2 moments for adam"),
        (update(&settings, 1, 8, &[numbers, codes]), "one width"),
        (update(&settings, 1, (1 << 18) + 1, &two), "at most 262144 numbers"),
    ];
    for (refused, why) in refused {
        let got = refused.unwrap_err();
        assert!(got.contains(why), "{got}");
    }
    let mut lion = State::new(&planner, Rule::Lion, 8).unwrap();
    let parameter = Parameter { dtype: DType::F16, len: 8, p: &0, g: &1 };
    let refused = optimizer.step(&planner, &settings, &parameter, &mut lion).unwrap_err();
    assert!(refused.to_string().contains("8 under lion"), "{refused}");
}
