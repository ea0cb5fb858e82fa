//! Products as operations of torch's own kind, through its stable C interface (torch 2.9 and later).
//!
//! An operation that is written in Python costs several times what the product of a small weight takes. For
//! these torch reads the arguments, and calls the functions here without Python. They take on what is in order:
//! dense, contiguous tensors on the CPU that fit each other. For all else they return no tensor at all (`None`
//! in Python), and the caller goes the long way, which converts what can be converted and says what is wrong:
//! an exception cannot be raised through C.
//!
//! Torch's functions are called by address (`torch/csrc/inductor/aoti_torch/c/shim.h`); Python looks them up in the
//! library that torch itself has loaded. What is passed and who frees it: `torch/csrc/stable/stableivalue_conversions.h`.

use std::ffi::{CStr, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{OnceLock, PoisonError, RwLock};

use lowbit::format::ScaleKind;
use lowbit::{Format, formats};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::memory::{Region, Size};
use crate::operations::{linear_typed, transposed_typed, typed};
use crate::to_python;
use crate::weight::{PyNested, PyScales, PyWeight};

/// What arguments and results are: an integer, the handle of a tensor, or the address of one of these, zero for
/// none, where there may be none.
type Value = u64;
/// A tensor of torch, on its heap.
type Handle = *mut c_void;
/// Zero for success.
type Status = i32;
/// What torch calls: a stack of arguments, on which the result takes the first place; how many there are of both.
type Kernel = extern "C" fn(*mut Value, u64, u64);

/// The table of torch's functions, and their names for Python to look up.
macro_rules! functions {
    ($($name:ident = $symbol:literal: fn($($argument:ty),*) $(-> $result:ty)?;)*) => {
        struct Torch {
            $($name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
        }

        const SYMBOLS: &[&str] = &[$($symbol),*];

        impl Torch {
            /// `None` where one is missing.
            ///
            /// # Safety
            /// The addresses are those of the functions named in [`SYMBOLS`], in that order.
            unsafe fn new(addresses: &[usize]) -> Option<Self> {
                let mut addresses = addresses.iter().copied();
                // SAFETY: a function's address is a pointer's, and its signature is torch's by the caller's
                // promise.
                Some(Torch { $($name: unsafe {
                    std::mem::transmute::<usize, unsafe extern "C" fn($($argument),*) $(-> $result)?>(
                        addresses.next().filter(|address| *address != 0)?,
                    )
                },)* })
            }
        }
    };
}

functions! {
    library = "aoti_torch_library_init_impl":
        fn(*const c_char, *const c_char, *const c_char, u32, *mut *mut c_void) -> Status;
    implement = "aoti_torch_library_impl": fn(*mut c_void, *const c_char, Kernel) -> Status;
    address = "aoti_torch_get_data_ptr": fn(Handle, *mut *mut c_void) -> Status;
    len = "aoti_torch_get_numel": fn(Handle, *mut i64) -> Status;
    dimensions = "aoti_torch_get_dim": fn(Handle, *mut i64) -> Status;
    sizes = "aoti_torch_get_sizes": fn(Handle, *mut *mut i64) -> Status;
    dtype = "aoti_torch_get_dtype": fn(Handle, *mut i32) -> Status;
    device = "aoti_torch_get_device_type": fn(Handle, *mut i32) -> Status;
    layout = "aoti_torch_get_layout": fn(Handle, *mut i32) -> Status;
    is_contiguous = "aoti_torch_is_contiguous": fn(Handle, *mut bool) -> Status;
    empty = "aoti_torch_empty_strided":
        fn(i64, *const i64, *const i64, i32, i32, i32, *mut Handle) -> Status;
    nothing = "aoti_torch_new_uninitialized_tensor": fn(*mut Handle) -> Status;
    delete = "aoti_torch_delete_tensor_object": fn(Handle) -> Status;
    // C++'s `operator delete`, for the values that may be none: torch has a function for it only since 2.13.
    delete_value = "_ZdlPv": fn(*mut c_void);
    item_size = "aoti_torch_dtype_element_size": fn(i32) -> usize;
    f32 = "aoti_torch_dtype_float32": fn() -> i32;
    f16 = "aoti_torch_dtype_float16": fn() -> i32;
    bf16 = "aoti_torch_dtype_bfloat16": fn() -> i32;
    cpu = "aoti_torch_device_type_cpu": fn() -> i32;
    strided = "aoti_torch_layout_strided": fn() -> i32;
}

/// What an operation has to know of a weight besides its tensors.
#[derive(Clone, Copy)]
struct Description {
    format: &'static Format,
    shape: [usize; 2],
    block_size: usize,
    nested_block_size: usize,
}

/// All that were described. An argument of an operation is the place of one: each argument takes torch a twentieth
/// of a microsecond to read.
static DESCRIPTIONS: RwLock<Vec<Description>> = RwLock::new(Vec::new());

/// The number by which operations know weights `[N, K]` of that format and these block sizes. Each call makes a
/// new one, so the caller keeps what it is given.
#[pyfunction]
pub fn describe(
    format: &str,
    n: Size,
    k: Size,
    block_size: Size,
    nested_block_size: Size,
) -> PyResult<usize> {
    let description = Description {
        format: formats::by_name(format).map_err(to_python)?,
        shape: [n.0, k.0],
        block_size: block_size.0,
        nested_block_size: nested_block_size.0,
    };
    let mut all = DESCRIPTIONS.write().unwrap_or_else(PoisonError::into_inner);
    all.push(description);
    Ok(all.len() - 1)
}

/// Torch's functions, from the first registration on.
static TORCH: OnceLock<Torch> = OnceLock::new();

/// The names of torch's functions that [`register_stable`] takes the addresses of.
#[pyfunction]
pub fn stable_symbols() -> Vec<&'static str> {
    SYMBOLS.to_vec()
}

/// Gives torch the kernels of `lowbit::linear_now` and `lowbit::linear_transposed_now`, which are defined
/// already, by way of the functions at these addresses. Once for a process.
///
/// # Errors
/// `ValueError` for other than one address for each of [`stable_symbols`], or if torch refuses.
#[pyfunction]
pub fn register_stable(addresses: Vec<Size>) -> PyResult<()> {
    let addresses = crate::memory::sizes(&addresses);
    let wrong = |what: &str| PyValueError::new_err(format!("addresses: {what}"));
    if addresses.len() != SYMBOLS.len() {
        let text = format!("expected {} of them, got {}", SYMBOLS.len(), addresses.len());
        return Err(wrong(&text));
    }
    // SAFETY: `stable_symbols` names what they are addresses of.
    let torch = unsafe { Torch::new(&addresses) }.ok_or_else(|| wrong("expected none to be 0"))?;
    if TORCH.set(torch).is_err() {
        return Err(wrong("expected them once in a process, got them again"));
    }
    let torch = TORCH.get().expect("was just set");
    const NAMESPACE: &CStr = c"lowbit";
    const KEY: &CStr = c"CompositeExplicitAutograd";
    let mut library = std::ptr::null_mut();
    // SAFETY: strings that end in zero and a place for the result. The library is never deleted, and with it
    // stay the kernels.
    let mut status = unsafe {
        let file = c"stable.rs".as_ptr();
        (torch.library)(NAMESPACE.as_ptr(), KEY.as_ptr(), file, line!(), &mut library)
    };
    let kernels: [(&CStr, Kernel); 2] =
        [(c"linear_now", linear), (c"linear_transposed_now", linear_transposed)];
    for (name, kernel) in kernels {
        if status == 0 {
            // SAFETY: the library was made, the name ends in zero, and the kernel is what torch calls it as.
            status = unsafe { (torch.implement)(library, name.as_ptr(), kernel) };
        }
    }
    if status == 0 { Ok(()) } else { Err(wrong("torch refused the kernels")) }
}

/// `lowbit::linear_now`.
extern "C" fn linear(stack: *mut Value, arguments: u64, _results: u64) {
    // SAFETY: torch calls this with the stack of the operation's arguments.
    unsafe { call(stack, arguments, multiply) }
}

/// `lowbit::linear_transposed_now`.
extern "C" fn linear_transposed(stack: *mut Value, arguments: u64, _results: u64) {
    // SAFETY: the same.
    unsafe { call(stack, arguments, multiply_transposed) }
}

/// Runs an operation, and leaves its result where torch expects it: a tensor, or one that is undefined.
///
/// # Safety
/// `stack` holds so many arguments, which belong to this call, and room for a result.
unsafe fn call<const COUNT: usize>(
    stack: *mut Value,
    arguments: u64,
    operation: fn(&'static Torch, [Value; COUNT]) -> Option<Tensor>,
) {
    let Some(torch) = TORCH.get() else { return };
    // SAFETY: the caller's promise.
    let values = unsafe { std::slice::from_raw_parts(stack, arguments as usize) };
    // Python defines the operations with so many arguments.
    let run = || operation(torch, values.try_into().ok()?);
    // Nothing of a panic may reach C. What panicked here will do so again on the way that can report it.
    let result = catch_unwind(AssertUnwindSafe(run)).ok().flatten();
    let result = result.map_or_else(|| torch.undefined(), Tensor::into_handle);
    // SAFETY: there is room for one result.
    unsafe { *stack = result as Value };
}

/// `y = x wᵀ + bias`.
fn multiply(torch: &'static Torch, [x, w @ .., bias]: [Value; 10]) -> Option<Tensor> {
    let (x, w, bias) = (torch.tensor(x), Weight::new(torch, w), torch.maybe_tensor(bias));
    let Description { format, shape: [n, k], .. } = w.description?;
    let x = x.dense()?;
    let y = x.with_last(torch, k, n)?;
    // All tensors are kept until the product is there.
    let bias = bias.as_ref().map_or(Some(None), |bias| {
        let bias = bias.dense().filter(|b| b.sizes == [n as i64] && b.dtype == x.dtype)?;
        Some(Some(bias.region()))
    });
    let (w, out) = (w.regions()?, y.dense()?.region());
    typed!(torch.name(x.dtype)?, linear_typed(format, w, x.region(), bias?, out)).ok()?;
    Some(y)
}

/// `dx = dy w`.
fn multiply_transposed(torch: &'static Torch, [dy, w @ ..]: [Value; 9]) -> Option<Tensor> {
    let (dy, w) = (torch.tensor(dy), Weight::new(torch, w));
    let Description { format, shape: [n, k], .. } = w.description?;
    let dy = dy.dense()?;
    let dx = dy.with_last(torch, n, k)?;
    let (w, out) = (w.regions()?, dx.dense()?.region());
    typed!(torch.name(dy.dtype)?, transposed_typed(format, w, dy.region(), out)).ok()?;
    Some(dx)
}

impl Torch {
    /// An argument that is a tensor.
    fn tensor(&'static self, value: Value) -> Tensor {
        Tensor { torch: self, handle: value as Handle }
    }

    /// An argument that may be none.
    fn maybe_tensor(&'static self, value: Value) -> Option<Tensor> {
        let place = value as *mut Value;
        if place.is_null() {
            return None;
        }
        // SAFETY: not none, so the address of a handle on C++'s heap, and both belong to this call.
        let handle = unsafe {
            let handle = *place;
            (self.delete_value)(place.cast());
            handle
        };
        Some(self.tensor(handle))
    }

    /// A handle of a tensor that is none; null only if torch has no memory for that either.
    fn undefined(&self) -> Handle {
        let mut handle = std::ptr::null_mut();
        // SAFETY: a place for the result.
        unsafe { (self.nothing)(&mut handle) };
        handle
    }

    /// The name of a dtype of activations.
    fn name(&self, dtype: i32) -> Option<&'static str> {
        // SAFETY: functions without arguments.
        let of = unsafe { [((self.f32)(), "f32"), ((self.f16)(), "f16"), ((self.bf16)(), "bf16")] };
        of.iter().find(|(other, _)| *other == dtype).map(|(_, name)| *name)
    }
}

/// A tensor of torch that belongs to this side.
struct Tensor {
    torch: &'static Torch,
    handle: Handle,
}

impl Drop for Tensor {
    fn drop(&mut self) {
        // SAFETY: the handle is this tensor's alone.
        unsafe { (self.torch.delete)(self.handle) };
    }
}

/// Where the numbers of a contiguous tensor on the CPU are.
struct Dense<'a> {
    address: usize,
    len: usize,
    item_size: usize,
    sizes: &'a [i64],
    dtype: i32,
}

impl Tensor {
    /// One property of the tensor.
    fn get<T: Default>(&self, of: unsafe extern "C" fn(Handle, *mut T) -> Status) -> Option<T> {
        let mut value = T::default();
        // SAFETY: a tensor and a place for the result, which is left alone if there is none.
        (unsafe { of(self.handle, &mut value) } == 0).then_some(value)
    }

    /// The same, where it is an address.
    fn pointer<T>(
        &self,
        of: unsafe extern "C" fn(Handle, *mut *mut T) -> Status,
    ) -> Option<*mut T> {
        let mut value = std::ptr::null_mut();
        // SAFETY: as above.
        (unsafe { of(self.handle, &mut value) } == 0).then_some(value)
    }

    /// `None` if it is on another device, sparse, or has gaps.
    fn dense(&self) -> Option<Dense<'_>> {
        let torch = self.torch;
        // SAFETY: functions without arguments.
        let (cpu, strided) = unsafe { ((torch.cpu)(), (torch.strided)()) };
        let in_order = self.get(torch.layout)? == strided
            && self.get(torch.device)? == cpu
            && self.get(torch.is_contiguous)?;
        if !in_order {
            return None;
        }
        let (dtype, sizes) = (self.get(torch.dtype)?, self.pointer(torch.sizes)?);
        let dimensions = usize::try_from(self.get(torch.dimensions)?).ok()?;
        let sizes = match dimensions {
            0 => &[],
            // SAFETY: so many sizes are there for as long as the tensor.
            _ => unsafe { std::slice::from_raw_parts(sizes, dimensions) },
        };
        Some(Dense {
            address: self.pointer(torch.address)? as usize,
            len: usize::try_from(self.get(torch.len)?).ok()?,
            // SAFETY: a function of a number that torch gave.
            item_size: unsafe { (torch.item_size)(dtype) },
            sizes,
            dtype,
        })
    }

    fn into_handle(self) -> Handle {
        std::mem::ManuallyDrop::new(self).handle
    }
}

impl Dense<'_> {
    /// A new tensor of the same dtype and shape, but for the last size, which is `from` and becomes `to`.
    fn with_last(&self, torch: &'static Torch, from: usize, to: usize) -> Option<Tensor> {
        let (last, others) = self.sizes.split_last()?;
        if *last != from as i64 {
            return None;
        }
        let sizes: Vec<i64> = others.iter().copied().chain([i64::try_from(to).ok()?]).collect();
        let mut strides = vec![1; sizes.len()];
        for i in (1..sizes.len()).rev() {
            strides[i - 1] = sizes[i].max(1).checked_mul(strides[i])?;
        }
        let mut handle = std::ptr::null_mut();
        // SAFETY: as many sizes and strides as dimensions, a dtype of torch's, its CPU, and a place for the
        // result.
        let status = unsafe {
            let (rank, cpu) = (sizes.len() as i64, (torch.cpu)());
            (torch.empty)(rank, sizes.as_ptr(), strides.as_ptr(), self.dtype, cpu, 0, &mut handle)
        };
        (status == 0).then_some(Tensor { torch, handle })
    }

    fn region(&self) -> Region {
        Region::new(self.address, self.len)
    }

    /// The region as bytes, whatever they are seen as.
    fn bytes(&self) -> Region {
        Region::new(self.address, self.len.saturating_mul(self.item_size))
    }
}

/// A weight as operations take it: eight of their arguments, in Python's order.
struct Weight {
    torch: &'static Torch,
    codes: Tensor,
    scales: Tensor,
    description: Option<Description>,
    nested: [Option<Tensor>; 3],
    codebook: Option<Tensor>,
    means: Option<Tensor>,
}

impl Weight {
    fn new(torch: &'static Torch, values: [Value; 8]) -> Self {
        let [codes, scales, place, absmax, map, offset, codebook, means] = values;
        let all = DESCRIPTIONS.read().unwrap_or_else(PoisonError::into_inner);
        Weight {
            torch,
            codes: torch.tensor(codes),
            scales: torch.tensor(scales),
            description: usize::try_from(place).ok().and_then(|place| all.get(place)).copied(),
            nested: [absmax, map, offset].map(|value| torch.maybe_tensor(value)),
            codebook: torch.maybe_tensor(codebook),
            means: torch.maybe_tensor(means),
        }
    }

    /// What the native functions are given of a weight.
    fn regions(&self) -> Option<PyWeight> {
        // SAFETY: functions without arguments.
        let (f32, f16) = unsafe { ((self.torch.f32)(), (self.torch.f16)()) };
        let floats = |tensor: &Tensor| {
            tensor.dense().filter(|dense| dense.dtype == f32).map(|dense| dense.region())
        };
        let maybe_floats = |tensor: &Option<Tensor>| match tensor {
            None => Some(None),
            Some(tensor) => floats(tensor).map(Some),
        };
        let Description { format, shape, block_size, nested_block_size } = self.description?;
        let nested = match &self.nested {
            [None, ..] => None,
            [Some(absmax), Some(map), Some(offset)] => {
                let size = Size(nested_block_size);
                Some(PyNested(floats(absmax)?, floats(map)?, floats(offset)?, size))
            }
            _ => return None,
        };
        let scales = if nested.is_some() || format.scale == ScaleKind::E8M0 {
            PyScales(self.scales.dense()?.bytes(), false)
        } else if format.scale == ScaleKind::Absmean && self.scales.get(self.torch.dtype)? == f16 {
            PyScales(self.scales.dense()?.region(), true)
        } else {
            PyScales(floats(&self.scales)?, false)
        };
        Some(PyWeight(
            shape.map(Size).to_vec(),
            Size(block_size),
            self.codes.dense()?.bytes(),
            scales,
            nested,
            maybe_floats(&self.codebook)?,
            maybe_floats(&self.means)?,
        ))
    }
}
