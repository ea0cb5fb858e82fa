"""Products by weights below two bits: ggml's kernels and lowbit's, in turns.

    pip install numpy llama-cpp-python
    python bench/ggml.py [--rows M] [--shape NxK] [--threads T] [--rounds R] [--libs DIR]

ggml is taken from llama-cpp-python, which pip builds for the processor at hand, or from any folder
with its libraries. Both find weights in memory, not in a cache, and both hold their answers to
exact products of the weights they have: ggml's here, lowbit's in `lowbit bench`. Writes a line of
JSON for each: the fastest call and the median of all rounds.

ggml rounds activations to 8 bits, lowbit does not: `max_error` is relative to the root mean square.
"""

import argparse
import ctypes
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
LOWBIT = os.environ.get("LOWBIT", ROOT / "target/release/lowbit")
OURS = "t158,bitlinear,bin1,sub1"
# Numbers of `enum ggml_type`.
F32 = 0
THEIRS = {"tq1_0": 34, "tq2_0": 35, "q1_0": 41}
# Products of one graph: what starting a graph takes is divided by so many.
PRODUCTS = 4
COLD_BYTES = 300_000_000


class InitParams(ctypes.Structure):
    """`ggml_init_params`."""

    _fields_ = (("size", ctypes.c_size_t), ("buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


class Traits(ctypes.Structure):
    """`ggml_type_traits`."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("block_size", ctypes.c_int64),
        ("interleave", ctypes.c_int64),
        ("block_bytes", ctypes.c_size_t),
        ("quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
        ("from_float", ctypes.c_void_p),
    )


class Plan(ctypes.Structure):
    """`ggml_cplan`."""

    _fields_ = (
        ("work_size", ctypes.c_size_t),
        ("work", ctypes.c_void_p),
        ("threads", ctypes.c_int),
        ("pool", ctypes.c_void_p),
        ("abort", ctypes.c_void_p),
        ("abort_data", ctypes.c_void_p),
        ("reference", ctypes.c_bool),
    )


def load(folder: Path) -> tuple[ctypes.CDLL, ctypes.CDLL]:
    """The two libraries of ggml, with the types of what is called."""
    suffix = ".dylib" if sys.platform == "darwin" else ".so"
    names = (f"libggml-base{suffix}", f"libggml-cpu{suffix}")
    base, cpu = (ctypes.CDLL(str(folder / name), ctypes.RTLD_GLOBAL) for name in names)
    pointer, number, size = ctypes.c_void_p, ctypes.c_int64, ctypes.c_size_t
    for name, result, *arguments in (
        ("ggml_init", pointer, InitParams),
        ("ggml_new_tensor_2d", pointer, pointer, ctypes.c_int, number, number),
        ("ggml_mul_mat", pointer, pointer, pointer, pointer),
        ("ggml_new_graph", pointer, pointer),
        ("ggml_build_forward_expand", None, pointer, pointer),
        ("ggml_get_data", pointer, pointer),
        ("ggml_row_size", size, ctypes.c_int, number),
        ("ggml_get_type_traits", ctypes.POINTER(Traits), ctypes.c_int),
        ("ggml_quantize_chunk", size, ctypes.c_int, pointer, pointer, *[number] * 3, pointer),
    ):
        function = getattr(base, name)
        function.restype, function.argtypes = result, arguments
    cpu.ggml_graph_plan.restype = Plan
    cpu.ggml_graph_plan.argtypes = (pointer, ctypes.c_int, pointer)
    cpu.ggml_graph_compute.argtypes = (pointer, ctypes.POINTER(Plan))
    cpu.ggml_cpu_init()
    return base, cpu


class Product:
    """Graphs of ggml that multiply copies of one weight, more than a cache holds."""

    def __init__(
        self,
        libraries: tuple[ctypes.CDLL, ctypes.CDLL],
        kind: int,
        w: np.ndarray,
        x: np.ndarray,
        threads: int,
    ) -> None:
        base, self.cpu = libraries
        (n, k), m = w.shape, len(x)
        self.bytes = n * base.ggml_row_size(kind, k)
        copies = max(2, -(-cold_bytes() // (self.bytes * PRODUCTS))) * PRODUCTS
        # A graph has room for 2048 nodes, which takes most of a megabyte.
        size = copies * (self.bytes + 4 * m * n + 4096) + x.nbytes + copies // PRODUCTS * (1 << 20)
        context = base.ggml_init(InitParams(size, None, no_alloc=False))
        if not context:
            raise SystemExit(f"ggml has no room for {size} bytes")
        self.graphs, work = [], 0
        rows = base.ggml_new_tensor_2d(context, F32, k, m)
        ctypes.memmove(base.ggml_get_data(rows), x.ctypes.data, x.nbytes)
        codes = ctypes.create_string_buffer(self.bytes)
        base.ggml_quantize_chunk(kind, w.ctypes.data, codes, 0, n, k, None)
        for _ in range(copies // PRODUCTS):
            graph = base.ggml_new_graph(context)
            for _ in range(PRODUCTS):
                weight = base.ggml_new_tensor_2d(context, kind, k, n)
                ctypes.memmove(base.ggml_get_data(weight), codes, self.bytes)
                y = base.ggml_mul_mat(context, weight, rows)
                base.ggml_build_forward_expand(graph, y)
            plan = self.cpu.ggml_graph_plan(graph, threads, None)
            work = max(work, plan.work_size)
            self.graphs.append((graph, plan))
        self.work = ctypes.create_string_buffer(max(work, 1))
        for _, plan in self.graphs:
            plan.work = ctypes.addressof(self.work)
        self.turn = 0
        self.run(len(self.graphs) - 1)
        numbers = ctypes.cast(base.ggml_get_data(y), ctypes.POINTER(ctypes.c_float))
        dense = np.empty((n, k), np.float32)
        traits = base.ggml_get_type_traits(kind).contents
        traits.to_float(ctypes.addressof(codes), dense.ctypes.data, n * k)
        exact = x @ dense.T
        off = np.ctypeslib.as_array(numbers, (m, n)) - exact
        self.error = float(np.abs(off).max() / np.sqrt((exact**2).mean()))
        if not self.error < 0.1:
            raise SystemExit(f"ggml is wrong by {self.error:.2e}, or this is not the ggml it was")

    def run(self, i: int) -> None:
        """One graph."""
        graph, plan = self.graphs[i]
        self.cpu.ggml_graph_compute(graph, ctypes.byref(plan))

    def times(self, seconds: float) -> list[float]:
        """Milliseconds of a product, by graph."""
        taken, end = [], time.perf_counter() + seconds
        while (start := time.perf_counter()) < end:
            self.run(self.turn % len(self.graphs))
            self.turn += 1
            taken.append(1e3 * (time.perf_counter() - start) / PRODUCTS)
        return taken


def cold_bytes() -> int:
    """Bytes of copies that no cache holds."""
    try:
        size = Path("/sys/devices/system/cpu/cpu0/cache/index3/size").read_text().strip()
        return max(COLD_BYTES, 4 * 1024 * int(size.rstrip("K")))
    except (OSError, ValueError):
        return COLD_BYTES


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--shape", default="4096x4096")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--libs", type=Path, help="the folder of ggml's libraries")
    arguments = parser.parse_args()
    folder = arguments.libs
    if folder is None:
        spec = importlib.util.find_spec("llama_cpp")
        if spec is None or spec.origin is None:
            raise SystemExit("ggml is not here: pip install llama-cpp-python, or give --libs")
        folder = Path(spec.origin).parent / "lib"
    n, k = map(int, arguments.shape.split("x"))
    random = np.random.default_rng(7)
    w = random.standard_normal((n, k), np.float32)
    x = random.standard_normal((arguments.rows, k), np.float32)
    libraries = load(folder)
    theirs = {
        name: Product(libraries, kind, w, x, arguments.threads) for name, kind in THEIRS.items()
    }
    command = [LOWBIT, "bench", "linear", "--json", "--seconds", "2", "--shape", arguments.shape]
    command += ["--format", OURS, "--dtype", "bf16,f32", "--rows", str(arguments.rows)]
    command += ["--threads", str(arguments.threads)]
    times: dict[str, list[float]] = {name: [] for name in theirs}
    ours: dict[str, list[dict]] = {}
    for _ in range(arguments.rounds):
        for name, product in theirs.items():
            times[name] += product.times(0.3)
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        for record in map(json.loads, output.splitlines()):
            ours.setdefault(f"{record['format']} {record['dtype']}", []).append(record)
    shared = {"shape": [n, k], "rows": arguments.rows, "threads": arguments.threads}
    for name, product in theirs.items():
        record = {
            "library": "ggml",
            "format": name,
            **shared,
            "ms_min": round(min(times[name]), 4),
            "ms_median": round(statistics.median(times[name]), 4),
            "bytes": product.bytes,
            "max_error": round(product.error, 6),
        }
        print(json.dumps(record))
    for name, records in ours.items():
        record = {
            "library": "lowbit",
            "format": name,
            **shared,
            "ms_min": round(min(r["ms_min"] for r in records), 4),
            "ms_median": round(statistics.median(r["ms_median"] for r in records), 4),
            "floor_ms": round(min(r["floor_ms"] for r in records), 4),
            "max_error": round(max(r["max_error"] for r in records), 6),
        }
        print(json.dumps(record))


if __name__ == "__main__":
    main()
