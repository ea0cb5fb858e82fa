// Chunks of 32 codes of four bits, which lie in one block: a byte of codes is looked up at once, in a
// table of pairs of half floats that lies in workgroup memory REPLICAS times, so that lanes read other banks.

struct Chunk {
    codes: vec4<u32>,
    scale: f32,
}
const CHUNK = 4u;

var<workgroup> pairs: array<vec2<f16>, PAIRS_OF_CODES>;

fn load_chunks(thread: u32) {
    for (var i = thread; i < PAIRS_OF_CODES; i += GROUP) {
        let byte = i / REPLICAS;
        let high = book[byte >> 4u];
        let low = book[byte & 15u];
        pairs[i] = vec2<f16>(select(vec2<f32>(low, high), vec2<f32>(high, low), HIGH_FIRST));
    }
    workgroupBarrier();
}

fn chunk(row: u32, col: u32) -> Chunk {
    return Chunk(codes[row * p.row_vectors + col / 32u], scale_of(block_of(row, col)));
}

// Something that takes all that is loaded for a chunk.
fn bits_of_chunk(c: Chunk) -> u32 {
    let bits = c.codes.xy ^ c.codes.zw;
    return bits.x ^ bits.y ^ bitcast<u32>(c.scale);
}

fn put_chunk(at: u32, c: Chunk, thread: u32) {
    let replica = thread % REPLICAS;
    let scale = f16(c.scale * (UNIT * bitcast<f32>(p.down)));
    for (var i = 0u; i < 4u; i++) {
        let word = c.codes[i];
        let w0 = pairs[(word & 255u) * REPLICAS + replica] * scale;
        let w1 = pairs[((word >> 8u) & 255u) * REPLICAS + replica] * scale;
        let w2 = pairs[((word >> 16u) & 255u) * REPLICAS + replica] * scale;
        let w3 = pairs[(word >> 24u) * REPLICAS + replica] * scale;
        put_octet(at + i, Halves(vec4<f16>(w0, w1), vec4<f16>(w2, w3)));
    }
}
