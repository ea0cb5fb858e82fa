// Chunks of eight weights of any format.

alias Chunk = Octet;
const CHUNK = 1u;

fn load_chunks(thread: u32) {
    load_table(thread);
}

fn chunk(row: u32, col: u32) -> Chunk {
    return octet(row, col);
}

fn put_chunk(at: u32, c: Chunk, thread: u32) {
    let w = octet_values(c, bitcast<f32>(p.down));
    put_octet(at, Halves(vec4<f16>(w[0]), vec4<f16>(w[1])));
}
