// Keeps moments as they are.

fn keep(thread: u32, i: u32, count: u32, m: Moments) {
    //@ for m in MOMENTS
    if (count == 4u) {
        numbers_$m[i] = m[$m];
    } else {
        // What follows the last may be another tensor's.
        let few_$m = m[$m];
        for (var c = 0u; c < count; c++) {
            numbers_$m[i][c] = few_$m[c];
        }
    }
    //@ end
}
