//! Pipelines, compiled when a kernel first comes, and what is bound to them.

use std::sync::Arc;

use lowbit::{Error, Result};

use super::{Buffer, OP, Shared, State};
use crate::kernel::{Access, Kernel};

/// A kernel, compiled.
pub(super) struct Pipeline {
    pub id: u64,
    pub pipeline: wgpu::ComputePipeline,
    layout: wgpu::BindGroupLayout,
    params: u64,
}

impl Shared {
    /// The pipeline of a kernel, compiled if it is not there.
    pub(super) fn pipeline(&self, state: &mut State, kernel: &Kernel) -> Result<Arc<Pipeline>> {
        if let Some(known) = state.pipelines.get(&kernel.name) {
            return Ok(known.clone());
        }
        let desc = wgpu::ShaderModuleDescriptor {
            label: Some(&kernel.name),
            source: wgpu::ShaderSource::Wgsl(kernel.source.as_str().into()),
        };
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let module = if self.checked {
            self.device.create_shader_module(desc)
        } else {
            // SAFETY: kernels index with what their host side checked against the buffers' sizes,
            // their loops end, and the tests run all of them with checks as well.
            unsafe {
                let none = wgpu::ShaderRuntimeChecks::unchecked();
                self.device.create_shader_module_trusted(desc, none)
            }
        };
        let params = 4 * kernel.params.len() as u64;
        let entries: Vec<wgpu::BindGroupLayoutEntry> = (0..)
            .zip(&kernel.bindings)
            .map(|(binding, b)| wgpu::BindGroupLayoutEntry {
                binding,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty: match b.access {
                        Access::Read => wgpu::BufferBindingType::Storage { read_only: true },
                        Access::ReadWrite => wgpu::BufferBindingType::Storage { read_only: false },
                        Access::Uniform => wgpu::BufferBindingType::Uniform,
                    },
                    has_dynamic_offset: b.access == Access::Uniform,
                    min_binding_size: None,
                },
                count: None,
            })
            .collect();
        let layout = self.device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some(&kernel.name),
            entries: &entries,
        });
        let pipeline_layout = self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(&kernel.name),
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(&kernel.name),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some(kernel.entry),
            compilation_options: wgpu::PipelineCompilationOptions {
                zero_initialize_workgroup_memory: false,
                ..Default::default()
            },
            cache: None,
        });
        if let Some(error) = pollster::block_on(scope.pop()) {
            return Err(Error::Device {
                op: OP,
                reason: format!("{} could not be compiled: {error}", kernel.name),
                help: "use the CPU, and report it with the output of `lowbit devices`".into(),
            });
        }
        let id = state.pipelines.len() as u64 + 1;
        let pipeline = Arc::new(Pipeline { id, pipeline, layout, params });
        state.pipelines.insert(kernel.name.clone(), pipeline.clone());
        Ok(pipeline)
    }

    /// Buffers of a dispatch and its parameters, bound to a pipeline.
    pub(super) fn bind(
        &self,
        state: &mut State,
        pipeline: &Pipeline,
        buffers: &[&Buffer],
    ) -> wgpu::BindGroup {
        let bound = buffers.iter().map(|b| [b.inner.id, b.offset, b.size]);
        let key = (pipeline.id, bound.collect::<Vec<_>>());
        if let Some(known) = state.groups.get(&key) {
            return known.clone();
        }
        let params = wgpu::BindingResource::Buffer(wgpu::BufferBinding {
            buffer: &self.params,
            offset: 0,
            size: std::num::NonZero::new(pipeline.params.next_multiple_of(16)),
        });
        let resources = buffers.iter().map(|b| {
            wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                buffer: &b.inner.buffer,
                offset: b.offset,
                size: std::num::NonZero::new(b.size),
            })
        });
        let entries: Vec<wgpu::BindGroupEntry<'_>> = (0..)
            .zip(resources.chain([params]))
            .map(|(binding, resource)| wgpu::BindGroupEntry { binding, resource })
            .collect();
        let group = self.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &pipeline.layout,
            entries: &entries,
        });
        state.groups.insert(key, group.clone());
        group
    }
}
