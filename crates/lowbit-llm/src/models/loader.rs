//! From a checkpoint or another source to a device: every tensor is checked against the shape that
//! `config.json` promises before anything runs on it.

use std::path::Path;

use lowbit::device::{Device, Tensor};
use lowbit::{DenseTensor, Weight};

use super::experts::Stack;
use super::layers::{Bundle, Linear, Norm};
use crate::{Checkpoint, Error, Result};

/// Where the weights of a model come from, under their names in a checkpoint.
pub trait Source {
    /// What a person would call it.
    fn name(&self) -> &Path;

    /// Stored bytes of all weights.
    fn bytes(&self) -> u64;

    /// Stored bytes and number of the weights of that name, if there are any.
    fn size(&self, name: &str) -> Option<(u64, u64)>;

    /// The weight of that name, which the model expects to have that shape.
    ///
    /// # Errors
    /// [`Error::Tensor`] if there is none.
    fn weight(&self, name: &str, shape: &[usize]) -> Result<Weight>;
}

impl Source for Checkpoint {
    fn name(&self) -> &Path {
        self.path()
    }

    fn bytes(&self) -> u64 {
        self.entries().iter().map(|entry| entry.bytes).sum()
    }

    fn size(&self, name: &str) -> Option<(u64, u64)> {
        self.entry(name).map(|entry| (entry.bytes, entry.numel()))
    }

    fn weight(&self, name: &str, _: &[usize]) -> Result<Weight> {
        Checkpoint::weight(self, name)
    }
}

/// Moves the weights of a source to a device, and counts them.
pub(crate) struct Loader<'a> {
    source: &'a dyn Source,
    device: &'a dyn Device,
    eps: f32,
    progress: &'a mut dyn FnMut(u64, u64),
    total_bytes: u64,
    /// Stored bytes moved so far, scales included.
    pub bytes: u64,
    /// Those of them that are weights of experts.
    pub expert_bytes: u64,
    /// Weights moved so far.
    pub weights: u64,
}

impl<'a> Loader<'a> {
    /// `progress` is called with bytes done and in total; norms use `eps`.
    pub fn new(
        source: &'a dyn Source,
        device: &'a dyn Device,
        eps: f32,
        progress: &'a mut dyn FnMut(u64, u64),
    ) -> Self {
        let total_bytes = source.bytes();
        Loader { source, device, eps, progress, total_bytes, bytes: 0, expert_bytes: 0, weights: 0 }
    }

    /// Matrix `name.weight: [N, K]` and, if asked for, vector `name.bias: [N]`.
    ///
    /// # Errors
    /// [`Error::Tensor`] for one that is missing, has another shape, or is not expected.
    pub fn linear(&mut self, name: &str, shape: [usize; 2], bias: bool) -> Result<Linear> {
        let (weight, bias) = self.weights(name, shape, bias)?;
        let upload = |weight: &Weight| self.device.upload(weight);
        let linear = Linear {
            weight: upload(&weight)?,
            bias: bias.as_ref().map(upload).transpose()?,
            name: format!("{name}.weight"),
        };
        self.count(&[name]);
        Ok(linear)
    }

    /// [`linear`](Self::linear) of `at.name` with `n` rows for each of `parts`, all of which multiply
    /// the same input.
    ///
    /// # Errors
    /// As [`linear`](Self::linear).
    pub fn bundle(
        &mut self,
        at: &str,
        parts: &[(&str, usize)],
        k: usize,
        bias: bool,
    ) -> Result<Bundle> {
        let names: Vec<String> = parts.iter().map(|(name, _)| format!("{at}.{name}")).collect();
        let weights = names
            .iter()
            .zip(parts)
            .map(|(name, (_, n))| self.weights(name, [*n, k], bias))
            .collect::<Result<Vec<_>>>()?;
        let weights = self.device.bundle(&weights)?;
        self.count(&names);
        Ok(Bundle { weights, names: names.iter().map(|name| format!("{name}.weight")).collect() })
    }

    /// Matrices `at.<expert>.<part>.weight` of one shape, for every expert and part.
    ///
    /// # Errors
    /// As [`linear`](Self::linear).
    pub fn experts(
        &mut self,
        at: &str,
        count: usize,
        parts: &[&str],
        shape: [usize; 2],
    ) -> Result<Stack> {
        let names = |expert| parts.iter().map(|part| format!("{at}.{expert}.{part}")).collect();
        let names: Vec<Vec<String>> = (0..count).map(names).collect();
        let weights = |names: &Vec<String>| {
            let weight = |name: &String| Ok(self.weights(name, shape, false)?.0);
            names.iter().map(weight).collect()
        };
        let weights = names.iter().map(weights).collect::<Result<Vec<Vec<Weight>>>>()?;
        let weights = self.device.experts(&weights)?;
        let before = self.bytes;
        self.count(&names.concat());
        self.expert_bytes += self.bytes - before;
        let full = |names: Vec<String>| names.iter().map(|n| format!("{n}.weight")).collect();
        Ok(Stack { names: names.into_iter().map(full).collect(), weights })
    }

    fn weights(
        &self,
        name: &str,
        [n, k]: [usize; 2],
        bias: bool,
    ) -> Result<(Weight, Option<Weight>)> {
        let bias_name = format!("{name}.bias");
        if !bias && self.source.size(&bias_name).is_some() {
            return Err(self.refuse(
                &bias_name,
                "none, as config.json asks for no bias",
                "a tensor",
            ));
        }
        let weight = self.checked(&format!("{name}.weight"), &[n, k])?;
        Ok((weight, if bias { Some(self.vector(&bias_name, n)?) } else { None }))
    }

    /// Norm with factors `name.weight: [len]`.
    ///
    /// # Errors
    /// As [`linear`](Self::linear).
    pub fn norm(&mut self, name: &str, len: usize) -> Result<Norm> {
        let factors = self.vector(&format!("{name}.weight"), len)?;
        let weight = self.device.upload(&factors)?;
        self.count(&[name]);
        Ok(Norm { weight, eps: self.eps })
    }

    /// A vector, in numbers: devices add and multiply by it.
    fn vector(&self, name: &str, len: usize) -> Result<Weight> {
        match self.checked(name, &[len])? {
            Weight::Quantized(q) => {
                let mut numbers = vec![0.0f32; len];
                lowbit::dequantize(&q, &mut numbers)?;
                Ok(DenseTensor::from_f32(vec![len], &numbers)?.into())
            }
            dense => Ok(dense),
        }
    }

    /// Matrix `name.weight` of that shape, as it is stored.
    ///
    /// # Errors
    /// As [`linear`](Self::linear).
    pub fn matrix(&mut self, name: &str, shape: [usize; 2]) -> Result<Tensor> {
        let weight = self.checked(&format!("{name}.weight"), &shape)?;
        let tensor = self.device.upload(&weight)?;
        self.count(&[name]);
        Ok(tensor)
    }

    fn checked(&self, name: &str, shape: &[usize]) -> Result<Weight> {
        let weight = self.source.weight(name, shape)?;
        if weight.shape() != shape {
            return Err(self.refuse(name, &format!("{shape:?}"), &format!("{:?}", weight.shape())));
        }
        Ok(weight)
    }

    /// Counts the weights and biases of these layers as moved.
    fn count(&mut self, names: &[impl AsRef<str>]) {
        let stored = |name: &str, part: &str| self.source.size(&format!("{name}.{part}"));
        for name in names.iter().map(AsRef::as_ref) {
            for (bytes, weights) in
                [stored(name, "weight"), stored(name, "bias")].into_iter().flatten()
            {
                self.bytes += bytes;
                self.weights += weights;
            }
        }
        (self.progress)(self.bytes, self.total_bytes);
    }

    fn refuse(&self, name: &str, expected: &str, got: &str) -> Error {
        let help = "config.json and the weights belong to different models";
        Error::tensor(self.source.name(), name, expected, got, help)
    }
}
