//! Runs a grid of threads: one threadgroup after the other, each thread on a stack of its own until
//! it has to wait.

use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::fmt;

use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, CoroutineResult, Yielder};

use crate::{Math, fault, memory};

/// How a kernel is started.
#[derive(Debug, Clone)]
pub struct Launch {
    /// Threads of the grid. The last groups of an axis are smaller where it is not a multiple.
    pub threads: [u32; 3],
    /// Threads of a group.
    pub group: [u32; 3],
    /// Threads of a simdgroup; 32 on Apple's GPUs. At most 64.
    pub simd_width: u32,
    /// Which thread goes first.
    pub order: Order,
}

/// In which order groups, simdgroups and threads get to run. A result that depends on it comes from
/// a missing barrier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// By their index.
    Forward,
    /// From the last to the first.
    Backward,
}

impl Launch {
    /// So many groups of so many threads, in simdgroups of 32.
    pub fn groups(groups: [u32; 3], group: [u32; 3]) -> Self {
        let threads = std::array::from_fn(|i| groups[i] * group[i]);
        Launch { threads, group, simd_width: 32, order: Order::Forward }
    }
}

impl Order {
    /// Numbers below `count` in this order.
    fn of(self, count: usize) -> impl Iterator<Item = usize> {
        (0..count).map(move |i| match self {
            Order::Forward => i,
            Order::Backward => count - 1 - i,
        })
    }
}

/// One thread's run through a kernel.
pub(crate) type Entry = unsafe extern "C" fn(*const *mut c_void, *const Position);

/// Where a thread is; include/standin/schedule.h has the same.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Position {
    threads_per_grid: [u32; 3],
    threadgroups_per_grid: [u32; 3],
    dispatch_threads_per_threadgroup: [u32; 3],
    threads_per_threadgroup: [u32; 3],
    pub threadgroup_position_in_grid: [u32; 3],
    pub thread_position_in_threadgroup: [u32; 3],
    thread_position_in_grid: [u32; 3],
    thread_index_in_threadgroup: u32,
    thread_index_in_simdgroup: u32,
    simdgroup_index_in_threadgroup: u32,
    threads_per_simdgroup: u32,
    simdgroups_per_threadgroup: u32,
}

/// Why a thread does not go on, and on which line of its kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    Barrier {
        site: u32,
    },
    /// Waits for its simdgroup. `trace` tells different runs of matrix operations before it apart.
    Simdgroup {
        site: u32,
        trace: u64,
    },
    /// It is at its end.
    End {
        trace: u64,
    },
    /// It needs more threadgroup memory than there is.
    Memory {
        bytes: usize,
    },
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stop::Barrier { site } => write!(f, "waits at the barrier in line {site}"),
            Stop::Simdgroup { site, .. } => write!(f, "waits for its simdgroup in line {site}"),
            Stop::End { .. } => write!(f, "is at its end"),
            Stop::Memory { bytes } => write!(f, "has {bytes} bytes of threadgroup memory"),
        }
    }
}

/// What the functions below know of the thread that calls them.
pub(crate) struct Thread {
    pub position: Position,
    yielder: Cell<*const Yielder<(), Stop>>,
    /// What the simdgroup exchanges, in two places that take turns: a thread may bring the next value
    /// while another has not yet looked at the last one.
    slots: [*mut Slot; 2],
    exchanges: Cell<usize>,
    /// Threads of its simdgroup.
    active: u32,
    memory: *mut Slot,
    memory_used: Cell<usize>,
    trace: Cell<u64>,
}

/// What a thread brings to an exchange: up to 16 bytes.
#[repr(C, align(16))]
#[derive(Clone, Copy)]
struct Slot([u8; 16]);

/// Bits that read as NaN.
const POISON: Slot = Slot([0xff; 16]);
/// Bytes of threadgroup memory that Apple's GPUs have.
const MEMORY: usize = 32 << 10;
/// Threads of a group that they run at most.
const MOST_THREADS: u32 = 1024;
/// Bytes of a thread's stack.
const STACK: usize = 256 << 10;

thread_local! {
    /// The thread of a kernel that runs now; what it points to outlives the run.
    static CURRENT: Cell<*const Thread> = const { Cell::new(std::ptr::null()) };
    static STACKS: RefCell<Vec<DefaultStack>> = const { RefCell::new(Vec::new()) };
}

/// The thread of a kernel that runs now, if one does.
pub(crate) fn current() -> *const Thread {
    CURRENT.get()
}

/// Gives a library of kernels the functions below.
pub(crate) fn connect(library: &libloading::Library) -> Result<(), libloading::Error> {
    #[repr(C)]
    struct Scheduler {
        exchange: extern "C" fn(*const u8, u32, u32) -> *const Slot,
        barrier: extern "C" fn(u32),
        together: extern "C" fn(u32) -> bool,
        threadgroup: extern "C" fn(u32, u32) -> *mut u8,
    }
    let scheduler = Scheduler { exchange, barrier, together, threadgroup };
    // SAFETY: include/connect.c declares the function and the struct like this, and copies the struct.
    unsafe {
        let connect: libloading::Symbol<'_, unsafe extern "C" fn(*const Scheduler)> =
            library.get("standin_connect")?;
        connect(&scheduler);
    }
    Ok(())
}

impl Thread {
    /// The calling one.
    fn this() -> &'static Thread {
        // SAFETY: only kernels call this, `run_group` sets the pointer before it lets one run, and
        // what it points to lives until all of them are at their end or forgotten.
        unsafe { &*CURRENT.get() }
    }

    fn stop(&self, stop: Stop) {
        // SAFETY: set at the start of the thread, to what its own stack holds.
        unsafe { &*self.yielder.get() }.suspend(stop);
    }
}

extern "C" fn exchange(value: *const u8, size: u32, site: u32) -> *const Slot {
    let this = Thread::this();
    let slots = this.slots[this.exchanges.replace(this.exchanges.get() + 1) % 2];
    let lane = this.position.thread_index_in_simdgroup as usize;
    // SAFETY: `slots` has a head and one slot for each thread of the simdgroup, of which only the
    // running one writes, and the kernel says that `value` has `size` bytes, which fit into a slot.
    unsafe {
        let slot = slots.add(1 + lane);
        std::ptr::copy_nonoverlapping(value, slot.cast(), (size as usize).min(size_of::<Slot>()));
    }
    this.stop(Stop::Simdgroup { site, trace: this.trace.get() });
    // SAFETY: the head is as long, and the kernel reads it before another thread runs.
    unsafe { slots.cast::<[u32; 2]>().write([lane as u32, this.active]) };
    slots
}

extern "C" fn barrier(site: u32) {
    Thread::this().stop(Stop::Barrier { site });
}

extern "C" fn together(site: u32) -> bool {
    let this = Thread::this();
    this.trace.set(this.trace.get().wrapping_mul(0x9e37_79b9_7f4a_7c15) + u64::from(site));
    this.position.thread_index_in_simdgroup == 0
}

extern "C" fn threadgroup(size: u32, align: u32) -> *mut u8 {
    let this = Thread::this();
    let start = this.memory_used.get().next_multiple_of(align as usize);
    let end = start + size as usize;
    this.memory_used.set(end);
    if end > MEMORY {
        this.stop(Stop::Memory { bytes: end });
    }
    this.memory.cast::<u8>().wrapping_add(start)
}

/// Runs a kernel, called `name`, to its end.
pub(crate) fn run(
    entry: Entry,
    name: &str,
    buffers: &[*mut c_void],
    launch: &Launch,
    math: Math,
) -> Result<(), String> {
    let _access = memory::access();
    let threads = launch.group.iter().fold(1u32, |product, n| product.saturating_mul(*n));
    if !(1..=MOST_THREADS).contains(&threads) || !(1..=64).contains(&launch.simd_width) {
        return Err(format!("it cannot be started like this: {launch:?}"));
    }
    let _name = fault::Named::new(name);
    let _flush = (math == Math::Fast).then(fault::FlushToZero::new);
    let groups: [u32; 3] = std::array::from_fn(|i| launch.threads[i].div_ceil(launch.group[i]));
    let count = groups.iter().map(|n| *n as usize).product();
    launch.order.of(count).try_for_each(|index| {
        let [x, y] = [groups[0] as usize, groups[1] as usize];
        let group = [(index % x) as u32, (index / x % y) as u32, (index / x / y) as u32];
        run_group(entry, buffers, launch, groups, group)
            .map_err(|reason| format!("group {group:?}: {reason}"))
    })
}

fn run_group(
    entry: Entry,
    buffers: &[*mut c_void],
    launch: &Launch,
    groups: [u32; 3],
    group: [u32; 3],
) -> Result<(), String> {
    let first: [u32; 3] = std::array::from_fn(|i| group[i] * launch.group[i]);
    let size: [u32; 3] = std::array::from_fn(|i| launch.group[i].min(launch.threads[i] - first[i]));
    let count = (size[0] * size[1] * size[2]) as usize;
    let width = launch.simd_width as usize;
    let simdgroups = count.div_ceil(width);
    let mut memory = vec![POISON; MEMORY / size_of::<Slot>()];
    let memory = memory.as_mut_ptr();
    // For each simdgroup and each of two turns: a head, the threads' slots, and one that nobody has.
    let mut slots = vec![POISON; simdgroups * 2 * (width + 2)];
    let slots = slots.as_mut_ptr();
    let thread = |i: usize| {
        let (simdgroup, index) = (i / width, i as u32);
        let place = [index % size[0], index / size[0] % size[1], index / size[0] / size[1]];
        let position = Position {
            threads_per_grid: launch.threads,
            threadgroups_per_grid: groups,
            dispatch_threads_per_threadgroup: launch.group,
            threads_per_threadgroup: size,
            threadgroup_position_in_grid: group,
            thread_position_in_threadgroup: place,
            thread_position_in_grid: std::array::from_fn(|i| first[i] + place[i]),
            thread_index_in_threadgroup: index,
            thread_index_in_simdgroup: (i % width) as u32,
            simdgroup_index_in_threadgroup: simdgroup as u32,
            threads_per_simdgroup: launch.simd_width,
            simdgroups_per_threadgroup: simdgroups as u32,
        };
        Thread {
            position,
            yielder: Cell::new(std::ptr::null()),
            slots: [0, 1].map(|turn| slots.wrapping_add((simdgroup * 2 + turn) * (width + 2))),
            exchanges: Cell::new(0),
            active: (count - simdgroup * width).min(width) as u32,
            memory,
            memory_used: Cell::new(0),
            trace: Cell::new(0),
        }
    };
    let threads: Vec<Thread> = (0..count).map(thread).collect();
    let mut running = Running::start(entry, buffers, &threads)?;
    let mut stops = vec![Stop::End { trace: 0 }; count];
    loop {
        for simdgroup in launch.order.of(simdgroups) {
            let first = simdgroup * width;
            let members = first..(first + width).min(count);
            loop {
                for i in launch.order.of(members.len()) {
                    stops[first + i] = running.resume(first + i, &threads[first + i]);
                }
                match agreed(&stops[members.clone()], first)? {
                    Stop::Simdgroup { .. } => {}
                    Stop::Memory { .. } => {
                        return Err(format!("a thread {}, more than {MEMORY}", stops[first]));
                    }
                    _ => break,
                }
            }
        }
        // Simdgroups may differ in what they do together before they come to their end.
        let ends = |stop: &Stop| matches!(stop, Stop::End { .. });
        if stops.iter().all(ends) {
            return Ok(());
        }
        agreed(&stops, 0)?;
    }
}

/// What all threads wait for, of which the first has index `first`.
fn agreed(stops: &[Stop], first: usize) -> Result<Stop, String> {
    let Some(i) = stops.iter().position(|stop| *stop != stops[0]) else {
        return Ok(stops[0]);
    };
    let (a, b) = (first, first + i);
    if stops[0].to_string() == stops[i].to_string() {
        return Err(format!("threads {a} and {b} did not do the same matrix operations"));
    }
    Err(format!("thread {a} {}, but thread {b} {}", stops[0], stops[i]))
}

/// The stacks of a group's threads.
struct Running(Vec<Coroutine<(), Stop, (), DefaultStack>>);

impl Running {
    fn start(entry: Entry, buffers: &[*mut c_void], threads: &[Thread]) -> Result<Self, String> {
        let buffers = buffers.as_ptr();
        let start = |thread: &Thread| {
            let kept = STACKS.with_borrow_mut(Vec::pop);
            let stack = match kept {
                Some(stack) => stack,
                None => DefaultStack::new(STACK).map_err(|error| error.to_string())?,
            };
            let thread: *const Thread = thread;
            Ok(Coroutine::with_stack(stack, move |yielder, ()| {
                // SAFETY: `run_group` keeps threads and buffers until all coroutines are done or
                // forgotten.
                unsafe {
                    (*thread).yielder.set(yielder);
                    entry(buffers, &(*thread).position);
                }
            }))
        };
        threads.iter().map(start).collect::<Result<_, _>>().map(Running)
    }

    /// Lets a thread run until it stops.
    fn resume(&mut self, i: usize, thread: &Thread) -> Stop {
        CURRENT.set(thread);
        let result = self.0[i].resume(());
        CURRENT.set(std::ptr::null());
        match result {
            CoroutineResult::Yield(stop) => stop,
            CoroutineResult::Return(()) => Stop::End { trace: thread.trace.get() },
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for mut coroutine in self.0.drain(..) {
            if !coroutine.done() {
                // SAFETY: what is on the stack is a kernel, which owns nothing, and functions of this
                // file, which hold nothing but references while they wait.
                unsafe { coroutine.force_reset() };
            }
            STACKS.with_borrow_mut(|stacks| stacks.push(coroutine.into_stack()));
        }
    }
}
