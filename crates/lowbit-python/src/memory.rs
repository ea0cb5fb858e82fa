//! Memory that Python owns, as slices.

use std::ops::Range;

use bytemuck::{AnyBitPattern, Pod};
use pyo3::exceptions::{PyOverflowError, PyValueError};
use pyo3::prelude::*;

/// A number from zero on. Others are a `ValueError`, where pyo3 would raise an `OverflowError`.
#[derive(Debug, Clone, Copy)]
pub struct Size(pub usize);

impl<'py> FromPyObject<'_, 'py> for Size {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        object.extract().map(Size).map_err(|error: PyErr| {
            if !error.is_instance_of::<PyOverflowError>(object.py()) {
                return error;
            }
            PyValueError::new_err(format!("expected a size, got {}", object.as_any()))
        })
    }
}

/// Numbers of a list or a tuple.
pub fn sizes(list: &[Size]) -> Vec<usize> {
    list.iter().map(|size| size.0).collect()
}

/// The elements of a contiguous tensor: address of the first, and their number.
#[derive(Debug, Clone, Copy, FromPyObject)]
pub struct Region(Size, Size);

impl Region {
    /// So many elements from an address on.
    pub fn new(address: usize, len: usize) -> Self {
        Region(Size(address), Size(len))
    }

    /// The addresses of the region, if a slice of `T` may lie there.
    fn check<T>(self, name: &str) -> PyResult<Range<usize>> {
        let Region(Size(address), Size(len)) = self;
        let refuse = |what: &str| {
            let text = format!(
                "{name}: expected the address of {len} elements of {} bytes, got {address:#x}, \
                 {what}; pass data_ptr() and numel() of a contiguous tensor",
                size_of::<T>()
            );
            Err(PyValueError::new_err(text))
        };
        let Some(bytes) = len.checked_mul(size_of::<T>()).filter(|b| *b <= isize::MAX as usize)
        else {
            return refuse("of more bytes than there is memory");
        };
        let Some(end) = address.checked_add(bytes) else {
            return refuse("which ends beyond the address space");
        };
        if len > 0 && address == 0 {
            return refuse("a null pointer");
        }
        if len > 0 && address % align_of::<T>() != 0 {
            return refuse("which is not aligned");
        }
        Ok(address..end)
    }

    /// The elements, to read.
    ///
    /// # Errors
    /// `ValueError`, naming the argument, for an address where no such slice can lie.
    ///
    /// # Safety
    /// The elements are initialized memory that nothing frees or writes while the slice is in use;
    /// the caller bounds `'a` to that.
    pub unsafe fn read<'a, T: AnyBitPattern>(self, name: &str) -> PyResult<&'a [T]> {
        if self.check::<T>(name)?.is_empty() {
            return Ok(&[]);
        }
        // SAFETY: not null, aligned, no longer than isize::MAX bytes; any bits are a T. The rest is
        // the caller's promise.
        Ok(unsafe { std::slice::from_raw_parts(self.0.0 as *const T, self.1.0) })
    }

    /// The elements, to write.
    ///
    /// # Errors
    /// `ValueError`, naming the argument, for an address where no such slice can lie, or where one
    /// of `inputs` lies too.
    ///
    /// # Safety
    /// As for [`read`](Self::read), and nothing else reads the elements meanwhile.
    pub unsafe fn write<'a, T: Pod>(
        self,
        name: &str,
        inputs: &[Range<usize>],
    ) -> PyResult<&'a mut [T]> {
        let range = self.check::<T>(name)?;
        if range.is_empty() {
            return Ok(&mut []);
        }
        if inputs.iter().any(|i| i.start < range.end && range.start < i.end) {
            let text = format!("{name}: expected memory of its own, got memory that is also read");
            return Err(PyValueError::new_err(text));
        }
        // SAFETY: as in `read`; no input overlaps it.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.0.0 as *mut T, self.1.0) })
    }
}

/// The addresses of a slice, for [`Region::write`] to keep clear of.
pub fn addresses<T>(slice: &[T]) -> Range<usize> {
    let range = slice.as_ptr_range();
    range.start as usize..range.end as usize
}
