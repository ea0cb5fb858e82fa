//! Files of bitsandbytes with tensors of another type or content than it writes by itself.

use std::path::Path;

use lowbit::Scales;
use lowbit_llm::Checkpoint;
use safetensors::Dtype;

use super::support::{Tensor, bits, golden, quantized, read, write};

/// Copies a bitsandbytes file, its tensors edited.
fn edited(dir: &Path, from: &str, edit: impl Fn(&mut Tensor)) -> Checkpoint {
    let mut tensors = read(&golden(from).join("model.safetensors"));
    tensors.iter_mut().for_each(edit);
    let path = dir.join("edited.safetensors");
    write(&path, &tensors);
    Checkpoint::open(&path).unwrap()
}

#[test]
fn codes_stored_as_another_type_are_the_same_codes() {
    let dir = tempfile::tempdir().unwrap();
    let original = Checkpoint::open(&golden("tiny-nf4")).unwrap();
    for (dtype, size) in [(Dtype::BF16, 2), (Dtype::F16, 2), (Dtype::F32, 4)] {
        let viewed = edited(dir.path(), "tiny-nf4", |tensor| {
            if tensor.dtype == Dtype::U8 && tensor.shape.get(1) == Some(&1) {
                (tensor.dtype, tensor.shape[0]) = (dtype, tensor.shape[0] / size);
            }
        });
        for entry in original.entries().iter().filter(|e| e.format.is_some()) {
            let (a, b) = (quantized(&viewed, &entry.name), quantized(&original, &entry.name));
            assert_eq!(bits(&a), bits(&b), "{dtype}");
        }
    }
}

#[test]
fn another_codebook_stays_with_its_tensor() {
    let dir = tempfile::tempdir().unwrap();
    let name = "model.layers.0.mlp.up_proj.weight";
    let checkpoint = edited(dir.path(), "tiny-nf4", |tensor| {
        if tensor.name == format!("{name}.quant_map") {
            tensor.data[4..8].copy_from_slice(&0.25f32.to_le_bytes());
        }
    });
    let q = quantized(&checkpoint, name);
    assert!(q.has_own_codebook());
    assert_eq!(q.codebook()[1], 0.25);
    assert_eq!(checkpoint.entry(name).unwrap().bytes, q.bytes() as u64);
    let others = checkpoint.entries().iter().filter(|e| e.format.is_some() && e.name != name);
    assert!(others.map(|e| quantized(&checkpoint, &e.name)).all(|q| !q.has_own_codebook()));
}

#[test]
fn another_nested_block_size_and_map_are_used() {
    let dir = tempfile::tempdir().unwrap();
    let name = "model.layers.0.self_attn.k_proj.weight";
    let checkpoint = edited(dir.path(), "tiny-nf4-dq", |tensor| {
        if tensor.name == format!("{name}.quant_state.bitsandbytes__nf4") {
            let json = String::from_utf8(tensor.data.clone()).unwrap();
            tensor.data =
                json.replace("\"nested_blocksize\": 256", "\"nested_blocksize\": 64").into();
            tensor.shape = vec![tensor.data.len()];
        } else if tensor.name == format!("{name}.nested_absmax") {
            *tensor = Tensor::f32s(&tensor.name, &[2], &[0.5, 2.0]);
        } else if tensor.name == format!("{name}.nested_quant_map") {
            *tensor = Tensor::f32s(&tensor.name, &[256], &[1.0; 256]);
        }
    });
    let q = quantized(&checkpoint, name);
    let Scales::Nested(nested) = q.scales() else { panic!("its scales are not nested") };
    assert_eq!(nested.block_size, 64);
    let expected = |absmax: f32| 1.0 * absmax + nested.offset;
    assert_eq!((q.scales().get(0), q.scales().get(127)), (expected(0.5), expected(2.0)));
}
