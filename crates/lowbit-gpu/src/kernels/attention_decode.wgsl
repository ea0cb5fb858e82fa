// Attention of one position: appends its key and value to the cache and attends to positions
// `p.start ..= p.past`. A group of threads takes HEADS heads of queries that share a head of keys, over the
// part of the positions that group.y says; a team of eight lanes takes a position, UNROLL at a time. The new
// position is not read back from the cache, so that what is there is on its way from the start.
//
// q: [KV_HEADS * SHARED, D], k, v: [KV_HEADS, D], keys, values: [KV_HEADS, capacity, STRIDE].

const TEAM = 8u;
const TEAMS = GROUP / TEAM;
const FOURS = STRIDE / 4u;
// Fours of a head that a lane holds: lane, lane + TEAM, ...
const OWN = (FOURS + TEAM - 1u) / TEAM;
const UNROLL = 4u;
// Groups of threads that share a head of keys.
const CHUNKS = (SHARED + HEADS - 1u) / HEADS;

var<workgroup> queries: array<vec4<f32>, HEADS * FOURS>;
var<workgroup> new_key: array<vec4<f32>, FOURS>;
var<workgroup> new_value: array<vec4<f32>, FOURS>;
var<workgroup> maxima: array<f32, HEADS * TEAMS>;
var<workgroup> sums: array<f32, HEADS * TEAMS>;
var<workgroup> parts: array<f32, TEAMS * STRIDE>;

// A lane's fours of UNROLL positions of the cache.
struct Seen {
    k: array<array<X4, OWN>, UNROLL>,
    v: array<array<X4, OWN>, UNROLL>,
}

fn seen_from(row: u32, first: u32, stop: u32, lane: u32) -> Seen {
    var seen: Seen;
    for (var u = 0u; u < UNROLL; u++) {
        let position = first + u * TEAMS;
        let at = (row + position) * FOURS;
        for (var j = 0u; j < OWN; j++) {
            let c = lane + j * TEAM;
            if (position < stop && c < FOURS) {
                seen.k[u][j] = keys[at + c];
                seen.v[u][j] = values[at + c];
            }
        }
    }
    return seen;
}

fn team_max(x: f32) -> f32 {
    let a = max(x, subgroupShuffleXor(x, 1u));
    let b = max(a, subgroupShuffleXor(a, 2u));
    return max(b, subgroupShuffleXor(b, 4u));
}

fn team_sum(x: f32) -> f32 {
    let a = x + subgroupShuffleXor(x, 1u);
    let b = a + subgroupShuffleXor(a, 2u);
    return b + subgroupShuffleXor(b, 4u);
}

fn team_sum4(x: vec4<f32>) -> vec4<f32> {
    return vec4<f32>(team_sum(x.x), team_sum(x.y), team_sum(x.z), team_sum(x.w));
}

// Numbers d and d + 1 of the query of the head that begins at `at`, rounded as activations are.
fn query(at: u32, d: u32) -> vec2<f32> {
    return x_unpack(x_pack(vec2<f32>(q_element(at, d), q_element(at, d + 1u))));
}

fn q_element(at: u32, d: u32) -> f32 {
    if (d >= D) {
        return 0.0;
    }
    return q_turned(at + d, p.turn);
}

// Over the teams of a subgroup.
fn teams_max(x: f32, width: u32) -> f32 {
    var all = x;
    for (var step = TEAM; step < width; step *= 2u) {
        all = max(all, subgroupShuffleXor(all, step));
    }
    return all;
}

fn teams_sum(x: f32, width: u32) -> f32 {
    var all = x;
    for (var step = TEAM; step < width; step *= 2u) {
        all += subgroupShuffleXor(all, step);
    }
    return all;
}

fn teams_sum4(x: vec4<f32>, width: u32) -> vec4<f32> {
    return vec4<f32>(
        teams_sum(x.x, width),
        teams_sum(x.y, width),
        teams_sum(x.z, width),
        teams_sum(x.w, width),
    );
}

@compute @workgroup_size(GROUP)
fn attention_decode(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
    @builtin(subgroup_invocation_id) place: u32,
    @builtin(subgroup_size) width: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
) {
    let kv_head = group.x / CHUNKS;
    let first_head = kv_head * SHARED + (group.x % CHUNKS) * HEADS;
    let last_head = kv_head * SHARED + SHARED - 1u;
    let end = p.past + 1u;
    let start = min(p.start + group.y * p.span, end);
    let stop = min(start + p.span, end);
    let team = thread / TEAM;
    let lane = thread % TEAM;
    let row = kv_head * p.capacity;
    let kept_to = min(stop, p.past);
    var next = seen_from(row, start + team, kept_to, lane);

    for (var i = thread; i < HEADS * FOURS; i += GROUP) {
        let at = min(first_head + i / FOURS, last_head) * D;
        let d = (i % FOURS) * 4u;
        queries[i] = bitcast<f32>(p.scale) * vec4<f32>(query(at, d), query(at, d + 2u));
    }
    if (stop == end) {
        for (var c = thread; c < FOURS; c += GROUP) {
            let k = key_of(0u, kv_head, c);
            let v = value_of(0u, kv_head, c);
            new_key[c] = x_unpack4(k);
            new_value[c] = x_unpack4(v);
            // Groups that share a head of keys write the same numbers.
            append(0u, kv_head, c, k, v);
        }
    }
    workgroupBarrier();

    var most: array<f32, HEADS>;
    var sum: array<f32, HEADS>;
    var y: array<array<vec4<f32>, OWN>, HEADS>;
    for (var h = 0u; h < HEADS; h++) {
        most[h] = LEAST;
    }
    for (var first = start; first < stop; first += TEAMS * UNROLL) {
        var k: array<array<vec4<f32>, OWN>, UNROLL>;
        var v: array<array<vec4<f32>, OWN>, UNROLL>;
        for (var u = 0u; u < UNROLL; u++) {
            let is_new = first + u * TEAMS + team == p.past;
            for (var j = 0u; j < OWN; j++) {
                let c = min(lane + j * TEAM, FOURS - 1u);
                k[u][j] = x_unpack4(next.k[u][j]);
                v[u][j] = x_unpack4(next.v[u][j]);
                if (is_new && lane + j * TEAM < FOURS) {
                    k[u][j] = new_key[c];
                    v[u][j] = new_value[c];
                }
            }
        }
        next = seen_from(row, first + TEAMS * UNROLL + team, kept_to, lane);
        let seen = first + team + TEAMS * vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(stop);
        for (var h = 0u; h < HEADS; h++) {
            var score: vec4<f32>;
            for (var j = 0u; j < OWN; j++) {
                let q = queries[h * FOURS + min(lane + j * TEAM, FOURS - 1u)];
                score += vec4<f32>(dot(q, k[0][j]), dot(q, k[1][j]), dot(q, k[2][j]), dot(q, k[3][j]));
            }
            score = select(vec4<f32>(LEAST), team_sum4(score), seen);
            let now = max(max(most[h], max(score.x, score.y)), max(score.z, score.w));
            let weight = select(vec4<f32>(), exp(score - now), seen);
            let kept = exp(most[h] - now);
            most[h] = now;
            sum[h] = sum[h] * kept + dot(weight, vec4<f32>(1.0));
            for (var j = 0u; j < OWN; j++) {
                y[h][j] = y[h][j] * kept
                    + weight.x * v[0][j] + weight.y * v[1][j] + weight.z * v[2][j] + weight.w * v[3][j];
            }
        }
    }

    for (var h = 0u; h < HEADS; h++) {
        let now = teams_max(most[h], width);
        let kept = exp(most[h] - now);
        most[h] = now;
        let total = teams_sum(sum[h] * kept, width);
        for (var j = 0u; j < OWN; j++) {
            y[h][j] = teams_sum4(y[h][j] * kept, width);
        }
        if (place == 0u) {
            maxima[h * TEAMS + subgroup] = now;
            sums[h * TEAMS + subgroup] = total;
        }
    }
    workgroupBarrier();
    for (var h = 0u; h < HEADS; h++) {
        var now = LEAST;
        for (var i = lane; i < subgroups; i += TEAM) {
            now = max(now, maxima[h * TEAMS + i]);
        }
        now = team_max(now);
        var total = 0.0;
        for (var i = lane; i < subgroups; i += TEAM) {
            total += sums[h * TEAMS + i] * exp(maxima[h * TEAMS + i] - now);
        }
        total = team_sum(total);
        let factor = exp(most[h] - now) * inverse(total);
        for (var j = 0u; j < OWN; j++) {
            let c = lane + j * TEAM;
            if (place < TEAM && c < FOURS) {
                for (var i = 0u; i < 4u; i++) {
                    parts[subgroup * STRIDE + c * 4u + i] = y[h][j][i] * factor;
                }
            }
        }
        workgroupBarrier();
        let head = first_head + h;
        if (head <= last_head) {
            for (var d = 2u * thread; d < D; d += 2u * GROUP) {
                var pair: vec2<f32>;
                for (var s = 0u; s < subgroups; s++) {
                    pair += vec2<f32>(parts[s * STRIDE + d], parts[s * STRIDE + d + 1u]);
                }
                give(head, group.y, groups.y, d, pair);
            }
            if (thread == 0u) {
                give_share(head, group.y, groups.y, now, total);
            }
        }
        workgroupBarrier();
    }
}
