// Attention of many positions, whose keys and values are in the cache already. A group of threads takes a
// tile of SIDE rows of a head of keys, each row a query head of a position: row = position * SHARED + head;
// it passes over SIDE positions of the cache at a time, SLAB numbers of a head at a time. A thread has two
// rows, and every eighth position or fourth number of them.
//
// q: [T, KV_HEADS * SHARED, D], keys, values: [KV_HEADS, capacity, STRIDE].

const SIDE = 32u;
const TEAM = 8u;
const FOURS = STRIDE / 4u;
// A slab is TEAM fours.
const SLABS = (FOURS + TEAM - 1u) / TEAM;
const PITCH = TEAM + 1u;

var<workgroup> left: array<vec4<f32>, SIDE * PITCH>;
var<workgroup> right: array<vec4<f32>, SIDE * PITCH>;
var<workgroup> weights: array<f32, SIDE * (SIDE + 1u)>;
var<workgroup> of_rows: array<f32, SIDE * TEAM>;

// Numbers d and d + 1 of a head of queries.
fn q_pair(head: u32, d: u32) -> vec2<f32> {
    if (d >= D) {
        return vec2<f32>();
    }
    let at = head * D + d;
    if (D % 2u == 0u) {
        return x_unpack(q[at / 2u]);
    }
    if (d + 1u == D) {
        return vec2<f32>(q_at(at), 0.0);
    }
    return vec2<f32>(q_at(at), q_at(at + 1u));
}

// The first position that the query of a position sees.
fn seen_from(position: u32) -> u32 {
    return position + 1u - min(p.window, position + 1u);
}

// The head of a row, counted over all positions.
fn head_of(row: u32, kv_head: u32) -> u32 {
    return ((row / SHARED) * KV_HEADS + kv_head) * SHARED + row % SHARED;
}

@compute @workgroup_size(GROUP)
fn attention_tile(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let kv_head = group.y;
    let first_row = group.x * SIDE;
    let last_row = p.rows * SHARED - 1u;
    let lane = thread % TEAM;
    let mine = vec2<u32>(thread / TEAM, thread / TEAM + SIDE / 2u);
    // What the tile sees: from the first that its first row sees to the last that its last row sees.
    let last = p.past + min(first_row + SIDE - 1u, last_row) / SHARED;
    let first = seen_from(p.past + first_row / SHARED);
    let start = min(first + group.z * p.span, last + 1u);
    let stop = min(start + p.span, last + 1u);
    let position = p.past + min(first_row + mine, vec2<u32>(last_row)) / SHARED;
    let seen = vec2<u32>(seen_from(position.x), seen_from(position.y));

    var most = vec2<f32>(LEAST);
    var sum: vec2<f32>;
    var y: array<array<vec4<f32>, SLABS>, 2>;
    for (var base = start; base < stop; base += SIDE) {
        // Scores: left are queries, right are keys.
        var score: array<vec4<f32>, 2>;
        for (var slab = 0u; slab < SLABS; slab++) {
            for (var i = thread; i < SIDE * TEAM; i += GROUP) {
                let row = min(first_row + i / TEAM, last_row);
                let c = slab * TEAM + i % TEAM;
                let head = head_of(row, kv_head);
                let at = (i / TEAM) * PITCH + i % TEAM;
                left[at] = vec4<f32>(q_pair(head, 4u * c), q_pair(head, 4u * c + 2u));
                right[at] = vec4<f32>();
                if (c < FOURS) {
                    right[at] = x_unpack4(keys[(kv_head * p.capacity + min(base + i / TEAM, stop - 1u)) * FOURS + c]);
                }
            }
            workgroupBarrier();
            for (var c = 0u; c < TEAM; c++) {
                let a = left[mine.x * PITCH + c];
                let b = left[mine.y * PITCH + c];
                for (var j = 0u; j < 4u; j++) {
                    let k = right[(lane + j * TEAM) * PITCH + c];
                    score[0][j] += dot(a, k);
                    score[1][j] += dot(b, k);
                }
            }
            workgroupBarrier();
        }
        // The largest of each row.
        for (var r = 0u; r < 2u; r++) {
            score[r] *= bitcast<f32>(p.scale);
            for (var j = 0u; j < 4u; j++) {
                let at = base + lane + j * TEAM;
                if (at - seen[r] > position[r] - seen[r] || at >= stop) {
                    score[r][j] = LEAST;
                }
            }
            let largest = max(max(score[r].x, score[r].y), max(score[r].z, score[r].w));
            of_rows[mine[r] * TEAM + lane] = largest;
        }
        workgroupBarrier();
        for (var r = 0u; r < 2u; r++) {
            var now = most[r];
            for (var i = 0u; i < TEAM; i++) {
                now = max(now, of_rows[mine[r] * TEAM + i]);
            }
            let kept = exp(most[r] - now);
            most[r] = now;
            sum[r] *= kept;
            for (var slab = 0u; slab < SLABS; slab++) {
                y[r][slab] *= kept;
            }
            for (var j = 0u; j < 4u; j++) {
                let at = base + lane + j * TEAM;
                let hidden = at - seen[r] > position[r] - seen[r] || at >= stop;
                let weight = select(exp(score[r][j] - now), 0.0, hidden);
                sum[r] += weight;
                weights[mine[r] * (SIDE + 1u) + lane + j * TEAM] = weight;
            }
        }
        // Sums of values: right are values.
        for (var slab = 0u; slab < SLABS; slab++) {
            workgroupBarrier();
            for (var i = thread; i < SIDE * TEAM; i += GROUP) {
                let c = slab * TEAM + i % TEAM;
                let at = (i / TEAM) * PITCH + i % TEAM;
                right[at] = vec4<f32>();
                if (c < FOURS && base + i / TEAM < stop) {
                    right[at] = x_unpack4(values[(kv_head * p.capacity + base + i / TEAM) * FOURS + c]);
                }
            }
            workgroupBarrier();
            for (var i = 0u; i < SIDE; i++) {
                let v = right[i * PITCH + lane];
                // What a row does not see may be NaN, which a weight of 0 would not hide.
                if (base + i - seen.x <= position.x - seen.x) {
                    y[0][slab] += weights[mine.x * (SIDE + 1u) + i] * v;
                }
                if (base + i - seen.y <= position.y - seen.y) {
                    y[1][slab] += weights[mine.y * (SIDE + 1u) + i] * v;
                }
            }
        }
        workgroupBarrier();
    }

    of_rows[mine.x * TEAM + lane] = sum.x;
    of_rows[mine.y * TEAM + lane] = sum.y;
    workgroupBarrier();
    for (var r = 0u; r < 2u; r++) {
        let row = first_row + mine[r];
        var total = 0.0;
        for (var i = 0u; i < TEAM; i++) {
            total += of_rows[mine[r] * TEAM + i];
        }
        if (row <= last_row) {
            let head = head_of(row, kv_head);
            for (var slab = 0u; slab < SLABS; slab++) {
                let d = 4u * (slab * TEAM + lane);
                let quad = y[r][slab] * inverse(total);
                if (d < D) {
                    give(head, group.z, groups.z, d, quad.xy);
                }
                if (d + 2u < D) {
                    give(head, group.z, groups.z, d + 2u, quad.zw);
                }
            }
            if (lane == 0u) {
                give_share(head, group.z, groups.z, most[r], total);
            }
        }
    }
}
