//! What belongs to the processor rather than to the kernel: signals, and how it rounds.

use std::cell::{Cell, RefCell};
use std::fmt::Write;
use std::sync::Once;

use crate::schedule;

thread_local! {
    /// What runs, for the message; only read while it does.
    static NAME: RefCell<String> = const { RefCell::new(String::new()) };
    static NAME_PARTS: Cell<(*const u8, usize)> = const { Cell::new((std::ptr::null(), 0)) };
}

/// While it lives, a fault of this thread is said to be that kernel's.
pub(crate) struct Named;

impl Named {
    pub fn new(name: &str) -> Self {
        static INSTALL: Once = Once::new();
        INSTALL.call_once(install);
        NAME.with_borrow_mut(|kept| {
            name.clone_into(kept);
            NAME_PARTS.set((kept.as_ptr(), kept.len()));
        });
        Named
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        NAME_PARTS.set((std::ptr::null(), 0));
    }
}

fn install() {
    for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE] {
        // SAFETY: the action is complete, and the handler does only what a handler may do.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handle as *const () as usize;
            action.sa_flags = libc::SA_ONSTACK | libc::SA_RESETHAND;
            libc::sigaction(signal, &action, std::ptr::null_mut());
        }
    }
}

/// Says what happened where. The signal comes again afterwards, and then ends the process.
extern "C" fn handle(signal: libc::c_int) {
    let (thread, (name, length)) = (schedule::current(), NAME_PARTS.get());
    let mut message = Message { text: [0; 512], length: 0 };
    let what = match signal {
        libc::SIGFPE => "an integer was divided by zero",
        _ => "an access outside of a buffer, or a stack that is too small",
    };
    if thread.is_null() || name.is_null() {
        let _ = writeln!(message, "metal-standin: {what}, but not in a kernel");
    } else {
        // SAFETY: the name is kept while `Named` lives, and the thread while it runs; both are those
        // of the thread that the signal came to.
        let (name, position) = unsafe {
            let name = std::slice::from_raw_parts(name, length);
            (std::str::from_utf8_unchecked(name), (*thread).position)
        };
        let _ = writeln!(
            message,
            "metal-standin: kernel {name}, group {:?}, thread {:?}: {what}",
            position.threadgroup_position_in_grid, position.thread_position_in_threadgroup
        );
    }
    // SAFETY: the message is as long.
    unsafe { libc::write(2, message.text.as_ptr().cast(), message.length) };
}

/// Text that needs no memory from elsewhere, as a signal handler has none.
struct Message {
    text: [u8; 512],
    length: usize,
}

impl Write for Message {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let room = &mut self.text[self.length..];
        let length = text.len().min(room.len());
        room[..length].copy_from_slice(&text.as_bytes()[..length]);
        self.length += length;
        Ok(())
    }
}

/// While it lives, numbers of this thread below the smallest normal f32 are zero.
pub(crate) struct FlushToZero(u64);

impl FlushToZero {
    /// Bits of the control register: flush results, and on x86 operands too.
    #[cfg(target_arch = "x86_64")]
    const BITS: u64 = 1 << 15 | 1 << 6;
    #[cfg(not(target_arch = "x86_64"))]
    const BITS: u64 = 1 << 24;

    pub fn new() -> Self {
        let before = control();
        set_control(before | Self::BITS);
        FlushToZero(before)
    }
}

impl Drop for FlushToZero {
    fn drop(&mut self) {
        set_control(self.0);
    }
}

#[cfg(target_arch = "x86_64")]
fn control() -> u64 {
    let mut value = 0u32;
    // SAFETY: stores 4 bytes there.
    unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &mut value, options(nostack)) };
    value.into()
}

#[cfg(target_arch = "x86_64")]
fn set_control(value: u64) {
    let value = value as u32;
    // SAFETY: loads 4 bytes from there, which `control` gave, but for bits that every x86-64 has.
    unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) &value, options(nostack, readonly)) };
}

#[cfg(target_arch = "aarch64")]
fn control() -> u64 {
    let value;
    // SAFETY: reads a register.
    unsafe { std::arch::asm!("mrs {}, fpcr", out(reg) value, options(nomem, nostack)) };
    value
}

#[cfg(target_arch = "aarch64")]
fn set_control(value: u64) {
    // SAFETY: writes what `control` gave, but for a bit that every arm64 has.
    unsafe { std::arch::asm!("msr fpcr, {}", in(reg) value, options(nomem, nostack)) };
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn control() -> u64 {
    0
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn set_control(_: u64) {}
