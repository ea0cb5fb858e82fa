// Chunks of eight weights of any format.

alias Chunk = Octet;
const CHUNK = 1u;

fn load_chunks(thread: u32) {
    load_table(thread);
}

fn chunk(row: u32, col: u32) -> Chunk {
    return octet(row, col);
}

// Something that takes all that is loaded for a chunk.
fn bits_of_chunk(c: Chunk) -> u32 {
    let words = c.low ^ c.high;
    let bits = words.xy ^ words.zw;
    return bits.x ^ bits.y ^ bitcast<u32>(c.scale) ^ bitcast<u32>(c.mean);
}

fn put_chunk(at: u32, c: Chunk, thread: u32) {
    let w = octet_values(c, bitcast<f32>(p.down));
    put_octet(at, Halves(vec4<f16>(w[0]), vec4<f16>(w[1])));
}
