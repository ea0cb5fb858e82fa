//! Mixtures of experts: a router sends each position through a few of many gated MLPs.

use lowbit::device::{self, Tensor, experts};

use super::layers::{Linear, Norm, Pass, names, show};
use super::loader::Loader;
use crate::Result;
use crate::config::Config;
use crate::fields::{Fields, INCONSISTENT, count};

/// More than any published model has by far.
const MAX_EXPERTS: u64 = 1 << 10;

/// What `config.json` says about experts.
#[derive(Debug, Clone)]
pub struct Experts {
    /// Experts of a layer.
    pub count: usize,
    /// How positions choose among them.
    pub routing: device::Routing,
    /// Numbers per position inside an expert.
    pub intermediate_size: usize,
    /// Whether a layer has experts; else it has an MLP.
    pub layers: Vec<bool>,
    pub(crate) names: &'static Names,
}

/// What a checkpoint calls the parts of a mixture.
#[derive(Debug)]
pub(crate) struct Names {
    /// The mixture within its layer.
    pub mixture: &'static str,
    pub gate: &'static str,
    pub up: &'static str,
    pub down: &'static str,
}

impl Experts {
    /// The fields that all model types have; `count` and `top` are taken where one is missing.
    pub(super) fn read(
        fields: &Fields,
        names: &'static Names,
        [experts, top]: [usize; 2],
        normalize: bool,
        intermediate_size: usize,
        layers: Vec<bool>,
    ) -> Result<Self> {
        // transformers wrote the one name for some model types and the other for others, and has changed its mind.
        let given = match fields.optional("num_local_experts", count(MAX_EXPERTS))? {
            None => fields.optional("num_experts", count(MAX_EXPERTS))?,
            given => given,
        };
        let experts = given.unwrap_or(experts);
        let top = fields.optional("num_experts_per_tok", count(MAX_EXPERTS))?.unwrap_or(top);
        if top > experts {
            let expected = format!("at most the number of experts, {experts}");
            return Err(fields.refuse("num_experts_per_tok", expected, INCONSISTENT));
        }
        let routing = device::Routing { top, normalize };
        Ok(Experts { count: experts, routing, intermediate_size, layers, names })
    }
}

/// A mixture of experts in a layer.
pub(crate) struct Mixture {
    /// `gate`: logits of the experts.
    router: Linear,
    routing: device::Routing,
    /// `gate_proj` and `up_proj` of each expert.
    gate_up: Stack,
    /// `down_proj` of each expert.
    down: Stack,
}

/// Linear layers of all experts.
pub(crate) struct Stack {
    /// Names of the weights of each expert.
    pub names: Vec<Vec<String>>,
    pub weights: Tensor,
}

impl Mixture {
    pub fn load(from: &mut Loader, config: &Config, of: &Experts, layer: usize) -> Result<Self> {
        let Names { mixture, gate, up, down } = *of.names;
        let at = format!("model.layers.{layer}.{mixture}");
        let (hidden, wide) = (config.hidden_size, of.intermediate_size);
        let experts = format!("{at}.experts");
        Ok(Mixture {
            router: from.linear(&format!("{at}.gate"), [of.count, hidden], false)?,
            routing: of.routing,
            gate_up: from.experts(&experts, of.count, &[gate, up], [wide, hidden])?,
            down: from.experts(&experts, of.count, &[down], [hidden, wide])?,
        })
    }

    /// As [`Block::stages`](super::layers::Block::stages).
    pub fn stages(&self) -> Vec<Vec<&str>> {
        let [gate_up, down] =
            [&self.gate_up, &self.down].map(|of| names(of.names.iter().flatten()));
        vec![vec![&self.router.name], gate_up, down]
    }

    /// Adds what it gives for the norm of `x: [T, C]` to `x`.
    pub fn forward(&self, pass: &mut Pass, x: &Tensor, norm: &Norm) -> Result<Tensor> {
        let device = pass.device;
        let normed = norm.forward(device, x)?;
        let logits = self.router.forward(device, pass.tap, &normed)?;
        let routes = device.route(&logits, self.routing)?;
        self.gate_up.show(pass, &normed, &routes)?;
        let inner = device.gated_experts(&normed, &self.gate_up.weights, &routes)?;
        self.down.show(pass, &inner, &routes)?;
        let mut sum = x.clone();
        for y in device.linear_experts(&inner, &self.down.weights, &routes)? {
            sum = device.mix_experts(&y, &routes, &sum)?;
        }
        Ok(sum)
    }
}

impl Stack {
    /// Shows the rows that each expert reads to whoever wants to see them.
    fn show(&self, pass: &mut Pass, x: &Tensor, routes: &device::Routes) -> Result<()> {
        if pass.tap.is_none() {
            return Ok(());
        }
        for routed in experts::by_expert(pass.device, x, routes)? {
            for name in self.names.get(routed.expert).into_iter().flatten() {
                show(pass.tap, name, &routed.x)?;
            }
        }
        Ok(())
    }
}
