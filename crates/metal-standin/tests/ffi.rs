//! The functions for other languages.
#![cfg(unix)]

use std::ffi::{CStr, CString, c_char, c_void};

use metal_standin::ffi::{
    Start, metal_standin_compile, metal_standin_free, metal_standin_kernels, metal_standin_run,
};
use metal_standin::skipped;

const TEXT: &str = "
#include <metal_stdlib>
kernel void twice(device float* x [[buffer(0)]], constant uint& n [[buffer(1)]],
        uint i [[thread_position_in_grid]]) {
    if (i < n) x[i] *= 2.0;
}
kernel void nothing(device float* x [[buffer(0)]]) {}";

fn said(message: &[c_char]) -> String {
    // SAFETY: all functions end what they say with a zero.
    unsafe { CStr::from_ptr(message.as_ptr()) }.to_string_lossy().into_owned()
}

#[test]
fn kernels_run_on_memory_of_the_caller() {
    if skipped() {
        return;
    }
    let mut message = [0; 1024];
    let (text, entry) = (CString::new(TEXT).unwrap(), CString::new("twice").unwrap());
    let (mut x, n) = ([1.0f32, 2.0, 3.0, 4.0], 3u32);
    let buffers = [x.as_mut_ptr().cast::<c_void>(), (&raw const n).cast_mut().cast()];
    let start = Start { threads: [4, 1, 1], group: [2, 1, 1], simd_width: 32, backward: false };
    let (words, length) = (message.as_mut_ptr(), message.len());
    // SAFETY: texts end with a zero, and everything is as long as it is said to be.
    unsafe {
        let library = metal_standin_compile(text.as_ptr(), true, words, length);
        assert!(!library.is_null(), "{}", said(&message));
        metal_standin_kernels(library, words, length);
        assert_eq!(said(&message), "nothing\ntwice");
        let run = |count| {
            metal_standin_run(
                library,
                entry.as_ptr(),
                buffers.as_ptr(),
                count,
                &start,
                words,
                length,
            )
        };
        assert!(run(2), "{}", said(&message));
        assert!(!run(1));
        let expected = "kernel twice of kernels.metal: it takes 2 buffers, not 1";
        assert_eq!(said(&message), expected);
        metal_standin_free(library);
    }
    assert_eq!(x, [2.0, 4.0, 6.0, 4.0]);
}

#[test]
fn a_text_that_does_not_compile_says_why() {
    if skipped() {
        return;
    }
    let text = CString::new("#include <metal_stdlib>\nkernel void f() { no; }").unwrap();
    let mut message = [0; 40];
    // SAFETY: the text ends with a zero, and the message is as long.
    let library =
        unsafe { metal_standin_compile(text.as_ptr(), false, message.as_mut_ptr(), message.len()) };
    assert!(library.is_null());
    assert!(said(&message).starts_with("clang: kernels.metal:2:19: error:"), "{}", said(&message));
}
