// No number has been found that is not finite.

@compute @workgroup_size(GROUP)
fn none_bad() {
    bad[0] = p.none;
}
