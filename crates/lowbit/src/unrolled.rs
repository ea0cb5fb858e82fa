//! Loops that are written out whatever a compiler thinks of their length: where it leaves one, vectors that it
//! goes through pass through memory, and a core does few stores of vectors.

/// `unrolled!(i of N in 0, 1, 2 => { .. })` runs a block for each of those numbers below `N`, as a constant.
macro_rules! unrolled {
    ($i:ident of $n:ident in $($at:literal),* => $body:block) => {
        $(if $at < $n {
            let $i: usize = $at;
            $body
        })*
    };
}

pub(crate) use unrolled;
