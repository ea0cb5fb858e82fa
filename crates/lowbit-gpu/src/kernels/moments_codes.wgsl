// Moments in 8 bits, `map[code] * absmax[block]`, four numbers at a time. Of each map there are 256 values
// and, as a search meets them level by level, the thresholds between these.

// Threads that have a block.
const EACH = BLOCK / 4u;

var<workgroup> tables: array<f32, TABLES>;

fn load_tables(thread: u32) {
    for (var i = thread; i < TABLES; i += GROUP) {
        tables[i] = maps[i];
    }
    workgroupBarrier();
}

fn moments_at(i: u32) -> Moments {
    var m: Moments;
    //@ for m in MOMENTS
    let word_$m = codes_$m[i];
    m[$m] = vec4<f32>(
        tables[MAP_$m + (word_$m & 255u)],
        tables[MAP_$m + ((word_$m >> 8u) & 255u)],
        tables[MAP_$m + ((word_$m >> 16u) & 255u)],
        tables[MAP_$m + (word_$m >> 24u)],
    ) * absmax_$m[i / EACH];
    //@ end
    return m;
}
