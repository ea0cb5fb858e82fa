// Codes of numbers, from thresholds in workgroup memory: one less than a power of two, the last of them
// beyond every number. They lie as a search meets them, level by level, so that lanes at the same level
// read neighbouring banks.

var<workgroup> thresholds: array<f32, PLACES>;
var<workgroup> codes_of_ranks: array<u32, PLACES>;

fn load_ranks(thread: u32) {
    for (var i = thread; i < PLACES; i += GROUP) {
        // Node i of a level is in the middle of an equal part of the ranks.
        let level = firstLeadingBit(max(i, 1u));
        let part = PLACES >> level;
        let rank = (i - (1u << level)) * part + part / 2u - 1u;
        thresholds[i] = 0x1.fffffep+127;
        if (i > 0u && rank < RANKS) {
            thresholds[i] = ups[rank];
        }
        codes_of_ranks[i] = ranked[min(i, RANKS)];
    }
}

fn encode(x: f32) -> u32 {
    let value = select(x, abs(x), SIGN_BIT != 0u);
    // Below the last level, nodes count the rank: how many thresholds are at most that.
    var node = 1u;
    for (var places = PLACES; places > 1u; places >>= 1u) {
        node = 2u * node + u32(thresholds[node] <= value);
    }
    return codes_of_ranks[node - PLACES] | select(0u, SIGN_BIT, x < 0.0);
}
