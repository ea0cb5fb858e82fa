//! Which GPUs there are, and which one to take.

use lowbit::{Error, Result};

use crate::queue::Limits;

/// A GPU as the system describes it.
#[derive(Debug, Clone)]
pub struct Adapter {
    inner: wgpu::Adapter,
    info: wgpu::AdapterInfo,
}

/// What kind of thing an adapter is, the best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Apple's, through Metal: its memory is the processor's.
    Metal,
    /// A card with memory of its own.
    Discrete,
    /// A part of the processor.
    Integrated,
    /// A virtual or unknown device.
    Other,
    /// A program that runs on the processor.
    Software,
}

impl Kind {
    /// In a word or two.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Metal => "Apple",
            Kind::Discrete => "card",
            Kind::Integrated => "integrated",
            Kind::Other => "other",
            Kind::Software => "software",
        }
    }
}

impl Adapter {
    /// Every adapter, the best first.
    pub fn all() -> Vec<Adapter> {
        let mut desc = wgpu::InstanceDescriptor::new_without_display_handle();
        desc.backends = wgpu::Backends::PRIMARY;
        // Validation layers are the business of whoever sets WGPU_VALIDATION.
        desc.flags = wgpu::InstanceFlags::from_env_or_default();
        let instance = wgpu::Instance::new(desc);
        let adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::PRIMARY));
        let mut all: Vec<Adapter> =
            adapters.into_iter().map(|inner| Adapter { info: inner.get_info(), inner }).collect();
        all.sort_by_key(Adapter::kind);
        all
    }

    /// The best adapter whose name contains `name`, whatever its case; without a name, the best
    /// that is not software.
    ///
    /// # Errors
    /// [`Error::Device`] if there is none, with the names there are.
    pub fn find(name: Option<&str>) -> Result<Adapter> {
        let all = Adapter::all();
        let wanted = name.map(str::to_lowercase);
        let fits = |a: &&Adapter| match &wanted {
            Some(name) => a.name().to_lowercase().contains(name),
            None => a.kind() != Kind::Software,
        };
        if let Some(found) = all.iter().find(fits) {
            return Ok(found.clone());
        }
        let names: Vec<String> = all.iter().map(Adapter::name).collect();
        let (reason, help) = match (name, names.is_empty()) {
            (_, true) => (
                "no GPU was found".to_owned(),
                "install its Vulkan driver, or use the CPU".to_owned(),
            ),
            (Some(name), false) => {
                (format!("no GPU is called {name:?}"), format!("there are: {}", names.join(", ")))
            }
            (None, false) => (
                "there is only a software rasterizer".to_owned(),
                format!("use the CPU, or ask for it by name: {}", names.join(", ")),
            ),
        };
        Err(Error::Device { op: "adapter", reason, help })
    }

    /// Its name.
    pub fn name(&self) -> String {
        self.info.name.clone()
    }

    /// The interface it is reached through: Metal, Vulkan, DX12.
    pub fn backend(&self) -> &'static str {
        match self.info.backend {
            wgpu::Backend::Metal => "Metal",
            wgpu::Backend::Vulkan => "Vulkan",
            wgpu::Backend::Dx12 => "DX12",
            _ => "other",
        }
    }

    /// Name and version of its driver, as it gives them.
    pub fn driver(&self) -> String {
        format!("{} {}", self.info.driver, self.info.driver_info).trim().to_owned()
    }

    /// What kind of thing it is.
    pub fn kind(&self) -> Kind {
        match (self.info.device_type, self.info.backend) {
            (wgpu::DeviceType::Cpu, _) => Kind::Software,
            (_, wgpu::Backend::Metal) => Kind::Metal,
            (wgpu::DeviceType::DiscreteGpu, _) => Kind::Discrete,
            (wgpu::DeviceType::IntegratedGpu, _) => Kind::Integrated,
            _ => Kind::Other,
        }
    }

    /// What kernels may use of it.
    pub fn limits(&self) -> Limits {
        let limits = self.wgpu_limits();
        let has = |feature| self.features().contains(feature);
        Limits {
            subgroup: (self.info.subgroup_min_size, self.info.subgroup_max_size),
            f16: has(wgpu::Features::SHADER_F16),
            subgroups: has(wgpu::Features::SUBGROUP),
            matrix: self.matrix(),
            // Metal loads matrices from numbers of their own type.
            vector_tiles: self.info.backend != wgpu::Backend::Metal,
            binding: limits.max_storage_buffer_binding_size.min(limits.max_buffer_size),
            threads: limits.max_compute_invocations_per_workgroup,
            workgroup_memory: limits.max_compute_workgroup_storage_size,
            groups: limits.max_compute_workgroups_per_dimension,
        }
    }

    /// The features that kernels use, where it has them.
    pub(crate) fn features(&self) -> wgpu::Features {
        let wanted = wgpu::Features::SUBGROUP
            | wgpu::Features::SHADER_F16
            | wgpu::Features::TIMESTAMP_QUERY
            | wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
        self.inner.features() & wanted
    }

    /// Its limits.
    pub(crate) fn wgpu_limits(&self) -> wgpu::Limits {
        self.inner.limits()
    }

    /// Side of its square cooperative matrices of f16 with sums in f32.
    fn matrix(&self) -> Option<u32> {
        if !self.features().contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX) {
            return None;
        }
        let sizes = self.inner.cooperative_matrix_properties();
        sizes
            .iter()
            .filter(|s| {
                s.m_size == s.n_size
                    && s.n_size == s.k_size
                    && s.ab_type == wgpu::CooperativeScalarType::F16
                    && s.cr_type == wgpu::CooperativeScalarType::F32
            })
            .map(|s| s.m_size)
            .max()
    }

    /// Opens it.
    pub(crate) fn open(
        &self,
        desc: &wgpu::DeviceDescriptor<'_>,
    ) -> Result<(wgpu::Device, wgpu::Queue)> {
        pollster::block_on(self.inner.request_device(desc)).map_err(|e| Error::Device {
            op: "open",
            reason: format!("{} could not be opened: {e}", self.name()),
            help: "close other programs that use it, or use the CPU".into(),
        })
    }
}
