// Number i of {x}, turned: of a head, numbers d and d + D / 2 are the legs of an angle, whose sine and
// cosine are in `turns`, D / 2 of them a row.
fn {x}_turned(i: u32, row: u32) -> f32 {
    let d = i % D;
    let first = d < D / 2u;
    let turn = turns[row * (D / 2u) + select(d - D / 2u, d, first)];
    let other = {x}_at(select(i - D / 2u, i + D / 2u, first));
    return {x}_at(i) * turn.y + select(other, -other, first) * turn.x;
}
