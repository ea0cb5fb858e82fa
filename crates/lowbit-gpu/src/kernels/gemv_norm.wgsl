// A norm of x before the product: every group of threads norms it for itself.

var<workgroup> normed: array<XUNIT, UNITS>;
var<workgroup> squares: array<f32, GROUP / 4u>;

fn prepare(thread: u32, lane: u32, subgroup: u32, subgroups: u32) {
    var own = 0.0;
    for (var i = thread; i < UNITS; i += GROUP) {
        own += unit_square(x[i]);
    }
    own = subgroupAdd(own);
    if (lane == 0u) {
        squares[subgroup] = own;
    }
    workgroupBarrier();
    var total = 0.0;
    for (var i = 0u; i < subgroups; i++) {
        total += squares[i];
    }
    let factor = 1.0 / sqrt(total / f32(K) + EPS);
    for (var i = thread; i < UNITS; i += GROUP) {
        normed[i] = unit_scaled(x[i], i, factor);
    }
    workgroupBarrier();
}

fn x_load(i: u32) -> XUNIT {
    return normed[i];
}
