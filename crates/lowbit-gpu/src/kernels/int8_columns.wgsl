// How many columns are marked, then which, ascending. One group of threads, each with a run of columns.

var<workgroup> ends: array<u32, GROUP>;

@compute @workgroup_size(GROUP)
fn int8_columns(@builtin(local_invocation_index) thread: u32) {
    let run = (p.k + GROUP - 1u) / GROUP;
    let first = min(thread * run, p.k);
    let last = min(first + run, p.k);
    var own = 0u;
    for (var c = first; c < last; c++) {
        own += u32(marks[c] != 0u);
    }
    ends[thread] = own;
    for (var step = 1u; step < GROUP; step <<= 1u) {
        workgroupBarrier();
        var before = 0u;
        if (thread >= step) {
            before = ends[thread - step];
        }
        workgroupBarrier();
        ends[thread] += before;
    }
    var at = 1u + ends[thread] - own;
    for (var c = first; c < last; c++) {
        if (marks[c] != 0u) {
            outliers[at] = c;
            at += 1u;
        }
    }
    if (thread == GROUP - 1u) {
        outliers[0] = ends[thread];
    }
}
