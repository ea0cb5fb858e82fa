// A norm of x before the product: every group of threads norms it for itself.

var<workgroup> normed: array<XUNIT, UNITS>;

fn prepare(thread: u32, lane: u32, width: u32, subgroup: u32, subgroups: u32) {
    var own = 0.0;
    for (var i = thread; i < UNITS; i += GROUP) {
        own += unit_square(x[i]);
    }
    note_squares(own, lane, subgroup);
    workgroupBarrier();
    let factor = norm_factor(lane, width, subgroups);
    for (var i = thread; i < UNITS; i += GROUP) {
        normed[i] = unit_scaled(x[i], i, factor);
    }
    workgroupBarrier();
}

fn x_load(i: u32) -> XUNIT {
    return normed[i];
}
