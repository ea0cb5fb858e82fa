//! The formats and kernels against the scalar reference, against bytes that bitsandbytes wrote,
//! and against its own limits.

mod acceptance;
mod conformance;
mod golden;
mod optim;
mod sub_two_bits;
