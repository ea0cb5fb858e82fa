// Moments in f32, four numbers at a time.

fn load_tables(thread: u32) {
}

fn moments_at(i: u32) -> Moments {
    var m: Moments;
    //@ for m in MOMENTS
    m[$m] = numbers_$m[i];
    //@ end
    return m;
}
