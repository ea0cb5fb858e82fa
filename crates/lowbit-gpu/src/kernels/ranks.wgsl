// Codes of numbers, from thresholds in workgroup memory: as many as a power of two, the last of them
// beyond every number.

var<workgroup> thresholds: array<f32, PLACES>;
var<workgroup> codes_of_ranks: array<u32, PLACES>;

fn load_ranks(thread: u32) {
    for (var i = thread; i < PLACES; i += GROUP) {
        thresholds[i] = 0x1.fffffep+127;
        if (i < RANKS) {
            thresholds[i] = ups[i];
        }
        codes_of_ranks[i] = ranked[min(i, RANKS)];
    }
}

fn encode(x: f32) -> u32 {
    let value = select(x, abs(x), SIGN_BIT != 0u);
    // Rank: how many thresholds are at most that.
    var rank = 0u;
    for (var half = PLACES / 2u; half > 0u; half >>= 1u) {
        rank += select(0u, half, thresholds[rank + half - 1u] <= value);
    }
    return codes_of_ranks[rank] | select(0u, SIGN_BIT, x < 0.0);
}

// A number times its block's factor; by way of the stored scale where the factor, 1 / absmax, overflows.
fn scaled(value: f32, factor: f32, scale: f32) -> f32 {
    if (bitcast<u32>(factor) != 0x7f800000u) {
        return value * factor;
    }
    // Absmax is the scale, or peak times it.
    let size = divide(abs(value), scale * select(1.0, PEAK, STEP)) * PEAK;
    return select(size, -size, value < 0.0);
}
