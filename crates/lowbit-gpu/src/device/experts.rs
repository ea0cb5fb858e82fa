//! Mixtures of experts on a GPU.

use lowbit::device::{Routes, Routing, Tensor, check, experts as one_by_one};
use lowbit::{DType, Result, Weight};

use super::{GpuDevice, Numbers, Vector};
use crate::experts::{self, Chosen};
use crate::stack::stack;
use crate::{GpuWeight, Queue};

/// All weights of all experts, as one.
struct Experts<B> {
    weight: GpuWeight<B>,
    count: usize,
    /// Rows of each weight of an expert.
    rows: Vec<usize>,
}

impl<Q: Queue> GpuDevice<Q> {
    pub(super) fn upload_experts(&self, all: &[Vec<Weight>]) -> Result<Tensor> {
        check::experts(all)?;
        let weights: Vec<&Weight> = all.iter().flatten().collect();
        let Some(stack) = stack(&weights) else { return one_by_one::upload(self, all) };
        let weight = GpuWeight::upload_stack(&self.queue, &stack)?;
        let rows = all.first().into_iter().flatten().map(|w| w.shape()[0]).collect();
        Ok(Tensor::new(vec![all.len()], Experts { weight, count: all.len(), rows }))
    }

    pub(super) fn choose_experts(&self, logits: &Tensor, routing: Routing) -> Result<Routes> {
        let (rows, count) = logits.rows_cols();
        check::routing(count, routing)?;
        let top = routing.top;
        if !experts::can_route(&self.queue, count, top) {
            return one_by_one::route(self, logits, routing);
        }
        let numbers = self.numbers("route", logits)?;
        let both = experts::route(&self.queue, self.activations, numbers, [rows, count], routing)?;
        let [experts, shares] =
            both.map(|buffer| Tensor::new(vec![rows * top], Numbers { buffer, dtype: DType::F32 }));
        Ok(Routes { rows, top, experts, shares })
    }

    pub(super) fn multiply_experts(
        &self,
        x: &Tensor,
        all: &Tensor,
        routes: &Routes,
    ) -> Result<Vec<Tensor>> {
        const OP: &str = "linear_experts";
        let Ok(all) = all.get::<Experts<Q::Buffer>>(OP) else {
            return one_by_one::linears(self, x, all, routes);
        };
        let chosen = self.chosen(x, all, routes)?;
        let x = self.numbers(OP, x)?;
        let y = experts::linear(&self.queue, x, &all.weight, &chosen, self.activations)?;
        self.columns(y, chosen.places, &all.rows)
    }

    pub(super) fn gate_experts(&self, x: &Tensor, all: &Tensor, routes: &Routes) -> Result<Tensor> {
        const OP: &str = "gated_experts";
        if let Ok(stacked) = all.get::<Experts<Q::Buffer>>(OP)
            && let [gate, up] = stacked.rows[..]
            && gate == up
        {
            let chosen = self.chosen(x, stacked, routes)?;
            let numbers = self.numbers(OP, x)?;
            let weight = &stacked.weight;
            let y = experts::gated(&self.queue, numbers, weight, &chosen, self.activations)?;
            if let Some(y) = y {
                return Ok(self.tensor(vec![chosen.places, up], y));
            }
        }
        one_by_one::gated(self, x, all, routes)
    }

    pub(super) fn add_experts(&self, y: &Tensor, routes: &Routes, to: &Tensor) -> Result<Tensor> {
        const OP: &str = "mix_experts";
        let (rows, cols) = check::mix(y, routes, to)?;
        let (y, shares) = (self.numbers(OP, y)?, f32s(OP, &routes.shares)?);
        let to = self.numbers(OP, to)?;
        let (dtype, top) = (self.activations, routes.top);
        let sum = experts::mix(&self.queue, dtype, y, shares, top, to, [rows, cols])?;
        Ok(self.tensor(vec![rows, cols], sum))
    }

    fn chosen<'a>(
        &self,
        x: &Tensor,
        all: &Experts<Q::Buffer>,
        routes: &'a Routes,
    ) -> Result<Chosen<'a, Q::Buffer>> {
        check::linear(x, all.weight.rows_cols().1)?;
        Ok(Chosen {
            readers: check::routed(x, routes)?,
            ids: f32s("linear_experts", &routes.experts)?,
            places: routes.rows * routes.top,
            experts: all.count,
        })
    }
}

/// Numbers that are no activations, whether a kernel wrote them or they were uploaded.
fn f32s<'a, B: 'static>(op: &'static str, x: &'a Tensor) -> Result<&'a B> {
    match x.get::<Vector<B>>(op) {
        Ok(vector) => Ok(&vector.numbers),
        Err(_) => Ok(&x.get::<Numbers<B>>(op)?.buffer),
    }
}
