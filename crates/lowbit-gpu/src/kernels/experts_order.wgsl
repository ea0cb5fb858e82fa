// Places in the order of their experts, each expert's from a whole tile on; which expert a tile is of.
// What fills a tile up is NONE, as is a tile of no expert. One group of threads does it all.

const NONE = 0xffffffffu;

var<workgroup> starts: array<u32, ENDS>;

@compute @workgroup_size(GROUP)
fn experts_order(@builtin(local_invocation_index) thread: u32) {
    for (var i = thread; i < p.tiles * TILE; i += GROUP) {
        order[i] = NONE;
    }
    for (var i = thread; i < p.tiles; i += GROUP) {
        tiles[i] = NONE;
    }
    for (var e = thread; e + 1u < ENDS; e += GROUP) {
        var count = 0u;
        for (var i = 0u; i < p.places; i++) {
            count += select(0u, 1u, u32(ids[i]) == e);
        }
        starts[e + 1u] = (count + TILE - 1u) / TILE;
    }
    storageBarrier();
    workgroupBarrier();
    if (thread == 0u) {
        starts[0] = 0u;
        for (var e = 1u; e < ENDS; e++) {
            starts[e] += starts[e - 1u];
        }
    }
    workgroupBarrier();
    for (var e = thread; e + 1u < ENDS; e += GROUP) {
        for (var t = starts[e]; t < starts[e + 1u]; t++) {
            tiles[t] = e;
        }
        var at = starts[e] * TILE;
        for (var i = 0u; i < p.places; i++) {
            if (u32(ids[i]) == e) {
                order[at] = i;
                at++;
            }
        }
    }
}
