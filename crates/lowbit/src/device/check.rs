//! The checks of arguments that every device makes, so that all refuse the same.

use super::{Attention, KvCache, Rope, Routes, Routing, Tensor};
use crate::{Error, Result, Weight};

fn refuse(op: &'static str, expected: String, got: String) -> Error {
    Error::argument(op, expected, got, "check the model's configuration")
}

/// Ids of [`embed`](super::Device::embed) are below the number of rows of the table.
///
/// # Errors
/// [`Error::Argument`] names the first that is not; all functions here return that error.
pub fn ids(rows: usize, ids: &[u32]) -> Result<()> {
    match ids.iter().find(|id| **id as usize >= rows) {
        None => Ok(()),
        Some(id) => Err(Error::argument(
            "embed",
            format!("token ids below {rows}"),
            id.to_string(),
            "use the tokenizer that belongs to the model",
        )),
    }
}

/// `x: [T, K]` fits `w: [N, K]`.
///
/// # Errors
/// As [`ids`].
pub fn linear(x: &Tensor, k: usize) -> Result<()> {
    match x.rows_cols() {
        (_, cols) if cols == k => Ok(()),
        _ => Err(refuse("linear", format!("x: [T, {k}]"), format!("{:?}", x.shape()))),
    }
}

/// A bias has a number for each of `n` outputs.
///
/// # Errors
/// As [`ids`].
pub fn bias(len: usize, n: usize) -> Result<()> {
    if len == n {
        return Ok(());
    }
    Err(refuse("linear", format!("a bias of {n} numbers"), len.to_string()))
}

/// Rows of `x` are whole runs of `length` numbers, of which `op` takes each by itself.
///
/// # Errors
/// As [`ids`].
pub fn runs(op: &'static str, x: &Tensor, length: usize) -> Result<()> {
    let (_, cols) = x.rows_cols();
    if length > 0 && cols % length == 0 {
        return Ok(());
    }
    Err(refuse(op, format!("rows of a multiple of {length}"), format!("{:?}", x.shape())))
}

/// Rows of `x` are heads that the rope can turn; the length of a head.
///
/// # Errors
/// As [`ids`].
pub fn rope(x: &Tensor, rope: &Rope) -> Result<usize> {
    let head_dim = 2 * rope.inv_freq.len();
    runs("rope", x, head_dim).map(|()| head_dim)
}

/// A tensor has that shape.
///
/// # Errors
/// As [`ids`].
pub fn shape(op: &'static str, x: &Tensor, expected: &[usize]) -> Result<()> {
    if x.shape() == expected {
        return Ok(());
    }
    Err(refuse(op, format!("{expected:?}"), format!("{:?}", x.shape())))
}

/// Two tensors have one shape.
///
/// # Errors
/// As [`ids`].
pub fn same_shape(op: &'static str, a: &Tensor, b: &Tensor) -> Result<()> {
    shape(op, b, a.shape())
}

/// Experts have as many weights each, and of the same shapes.
///
/// # Errors
/// As [`ids`].
pub fn experts(experts: &[Vec<Weight>]) -> Result<()> {
    let shapes = |weights: &Vec<Weight>| -> Vec<Vec<usize>> {
        weights.iter().map(|weight| weight.shape().to_vec()).collect()
    };
    let all: Vec<_> = experts.iter().map(shapes).collect();
    match all.iter().find(|shapes| **shapes != all[0] || shapes.iter().any(|s| s.len() != 2)) {
        None => Ok(()),
        Some(other) => {
            let expected = format!("matrices of the same shapes for every expert: {:?}", all[0]);
            Err(refuse("experts", expected, format!("{other:?}")))
        }
    }
}

/// Each row can choose as many of `count` experts.
///
/// # Errors
/// As [`ids`].
pub fn routing(count: usize, routing: Routing) -> Result<()> {
    if (1..=count).contains(&routing.top) {
        return Ok(());
    }
    Err(refuse("route", format!("1..={count} experts a row"), routing.top.to_string()))
}

/// `x: [T, K]` or `[T * top, K]`, where the routes have `T` rows; how many places read a row of it.
///
/// # Errors
/// As [`ids`].
pub fn routed(x: &Tensor, routes: &Routes) -> Result<usize> {
    let Routes { rows, top, .. } = *routes;
    match x.rows_cols().0 {
        have if have == rows => Ok(top),
        have if have == rows * top => Ok(1),
        _ => {
            let expected = format!("x of {rows} or {} rows", rows * top);
            Err(refuse("linear_experts", expected, format!("{:?}", x.shape())))
        }
    }
}

/// `y: [T * top, C]` is what experts gave for routes of `to: [T, C]`; rows and columns of that.
///
/// # Errors
/// As [`ids`].
pub fn mix(y: &Tensor, routes: &Routes, to: &Tensor) -> Result<(usize, usize)> {
    const OP: &str = "mix_experts";
    let (_, cols) = y.rows_cols();
    shape(OP, to, &[routes.rows, cols])?;
    shape(OP, y, &[routes.rows * routes.top, cols]).map(|()| (routes.rows, cols))
}

/// `x` has rows `start .. start + rows`.
///
/// # Errors
/// As [`ids`].
pub fn rows(x: &Tensor, start: usize, rows: usize) -> Result<()> {
    let (have, _) = x.rows_cols();
    match start.checked_add(rows) {
        Some(end) if end <= have => Ok(()),
        _ => Err(refuse("rows", format!("rows within 0..{have}"), format!("{rows} from {start}"))),
    }
}

/// Queries, keys and values fit each other and a layer of the cache, which has room; their rows.
///
/// # Errors
/// As [`ids`].
pub fn attention(
    [q, k, v]: [&Tensor; 3],
    cache: &KvCache,
    layer: usize,
    attention: &Attention,
) -> Result<usize> {
    let Attention { heads, kv_heads, head_dim, .. } = *attention;
    let (rows, _) = q.rows_cols();
    let shape = cache.shape();
    let fits = q.shape() == [rows, heads * head_dim]
        && k.shape() == [rows, kv_heads * head_dim]
        && v.shape() == k.shape()
        && (shape.kv_heads, shape.head_dim) == (kv_heads, head_dim)
        && kv_heads > 0
        && heads % kv_heads == 0
        && layer < shape.layers;
    if !fits {
        let expected = format!("{attention:?} in layer {layer} of {shape:?}");
        let got = format!("q {:?}, k {:?}, v {:?}", q.shape(), k.shape(), v.shape());
        return Err(refuse("attention", expected, got));
    }
    cache.check_room(rows)?;
    Ok(rows)
}

/// A cache whose data another device made.
pub fn foreign_cache() -> Error {
    let (expected, got) = ("a cache of this device", "a foreign cache");
    Error::argument("attention", expected, got, "make the cache on the device that uses it")
}
