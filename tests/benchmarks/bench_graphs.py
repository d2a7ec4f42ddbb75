"""Speed of the exported graphs, compared with PyTorch, OpenVINO and matrix multiplication.

    pip install openvino    # optional: two rows more
    python tests/benchmarks/bench_graphs.py --model small
    python tests/benchmarks/bench_graphs.py --model paper
    python tests/benchmarks/bench_graphs.py --model small --device cuda    # with glowserve[gpu]
    python tests/benchmarks/bench_graphs.py --model small --beside FOLDER  # graphs of another checkout, two minutes

Weights are random, images are 32x32x3. int8 is used in every coupling network; calibration may exclude some. Each row
runs in its own process, and the rows take turns. A row with several parallel runs needs as many concurrent callers. The
last row is computed: the time of the convolutions' operations at the rate of one large matrix multiplication, which is
measured in the same turns. On a GPU, inputs and results are in host memory, and TF32 is off. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

_SIZE, _CHANNELS, _LEVELS = 32, 3, 3
_MODELS = {"small": {"steps_per_level": 16, "width": 256}, "paper": {"steps_per_level": 32, "width": 512}}
_BATCHES = {"cpu": (1, 8, 32), "cuda": (1, 8, 32, 128)}
_ROUNDS = {"small": 5, "paper": 3}
# The shortest measurement of a row.
_SECONDS = {"cpu": 2.0, "cuda": 0.5}
_CORES = os.cpu_count() or 1
_BASELINE, _SGEMM = "PyTorch, as a tutorial writes it", "same operations at sgemm's rate"
_MATRIX = {"cpu": 2048, "cuda": 8192}

# A function that runs a number of batches, and how many of them run in parallel.
Run = tuple[Callable[[int], Any], int]
Worker = tuple[Any, Connection]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", choices=_MODELS, default="small", help="K=16 width 256, or the paper's")
    parser.add_argument("--device", choices=_BATCHES, default="cpu")
    parser.add_argument(
        "--beside",
        type=Path,
        metavar="FOLDER",
        help="only the fp32 graphs on the CPU, beside forward.onnx and reverse.onnx of this folder: the same model's",
    )
    args = parser.parse_args()
    device, settings, rounds = args.device, _MODELS[args.model], _ROUNDS[args.model]
    batches, matrix = _BATCHES[device], _MATRIX[device]
    print(f"{platform.processor() or platform.machine()}, {_CORES} cores, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as folder, multiprocessing.get_context("spawn").Pool(1) as pool:
        operations = pool.apply(_export, (settings, Path(folder)))
        rows = _beside(args.beside, Path(folder)) if args.beside else _rows(settings, Path(folder), device)
        workers = {name: _start(*row) for name, row in rows.items()}
        print(
            f"images per second, 32x32x3, K={settings['steps_per_level']} L={_LEVELS} width={settings['width']}; "
            f"medians of {rounds} rounds that take turns, and of the ratios to the first row"
        )
        best = 0.0
        for direction in ("forward", "reverse"):
            columns = {batch: _column(workers, direction, batch, rounds, device) for batch in batches}
            for batch, found in columns.items():
                if _SGEMM in found:
                    rates = [rate / batch * 2 * matrix**3 for rate in found[_SGEMM]]
                    best = max(best, *rates)
                    found[_SGEMM] = [rate / operations[direction] for rate in rates]
            _print_table(direction, columns, operations[direction])
        if not args.beside:
            print(f"\nsgemm {matrix}^3, {device}: {best / 1e9:.0f} GFLOP/s at best")
        for process, connection in workers.values():
            connection.send(None)
            process.join()
        for direction in ("forward", "reverse") if device == "cpu" and not args.beside else ():
            pool.apply(_print_profile, (Path(folder) / "fp32", direction))


def _rows(settings: dict[str, int], graphs: Path, device: str) -> dict[str, tuple[Any, ...]]:
    """By name of the row: the function that its process calls to prepare a measurement, and its arguments."""
    rows: dict[str, tuple[Any, ...]] = {
        _BASELINE: (_pytorch, settings, False, device),
        "PyTorch, inverses precomputed": (_pytorch, settings, True, device),
    }
    if device == "cuda":
        rows["fp32 graph, plain run"] = (_cuda, graphs / "fp32", False)
        for precision in ("fp32", "fp16"):
            rows[f"{precision} graph, as served"] = (_cuda, graphs / precision, True)
        return rows | {_SGEMM: (_sgemm, device)}
    for precision in ("fp32", "int8"):
        for runs in sorted({1, _CORES}):
            name = f"{precision} graph, {runs} x {_CORES // runs} threads"
            rows[name] = (_onnxruntime, graphs / precision, runs, _CORES // runs)
    if importlib.util.find_spec("openvino"):
        for hint in ("LATENCY", "THROUGHPUT"):
            rows[f"fp32 graph in OpenVINO, {hint}"] = (_openvino, graphs / "fp32", hint)
    else:
        print("OpenVINO is not installed: its rows are left out")
    return rows | {_SGEMM: (_sgemm, device)}


def _beside(other: Path, graphs: Path) -> dict[str, tuple[Any, ...]]:
    """The rows of a comparison with another checkout's graphs."""
    folders = {f"fp32 graph of {other}": other, "fp32 graph, ours": graphs / "fp32"}
    return {name: (_onnxruntime, folder, _CORES, 1) for name, folder in folders.items()}


def _column(
    workers: dict[str, Worker], direction: str, batch: int, rounds: int, device: str
) -> dict[str, list[float]]:
    """Images per second of each row in each round. For sgemm, one product counts as a batch."""
    found: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(rounds):
        for name, (_, connection) in workers.items():
            connection.send(((direction, batch), _SECONDS[device]))
            found[name].append(connection.recv() * batch)
    return found


def _print_table(direction: str, columns: dict[int, dict[str, list[float]]], operations: int) -> None:
    print(f"\n{direction:<40}" + "".join(f"{f'batch {batch}':>19}" for batch in columns))
    baseline = next(iter(columns[1]))
    for name in columns[1]:
        cells = []
        for found in columns.values():
            ratios = [value / base for value, base in zip(found[name], found[baseline], strict=True)]
            cells.append(f"{statistics.median(found[name]):>9.1f}{statistics.median(ratios):>8.2f} x")
        print(f"  {name:<38}" + "".join(cells))
    rate, name, batch = max(
        (statistics.median(found[name]), name, batch)
        for batch, found in columns.items()
        for name in found
        if name.startswith("fp32 graph, ")
    )
    print(f"  {name}, is at its best with batch {batch}: {rate * operations / 1e9:.0f} GFLOP/s")


def _print_profile(folder: Path, direction: str) -> None:
    """Prints how much time the fp32 graph spends in each operator on one thread, from ONNX Runtime's profile."""
    columns: list[dict[str, float]] = []
    sizes = (_BATCHES["cpu"][0], _BATCHES["cpu"][-1])
    for batch in sizes:
        runs, path = 64 // batch + 2, folder / f"{direction}.json"
        session = _session(folder / f"{direction}.onnx", threads=1, profile=path)
        for _ in range(runs):
            session.run(None, _inputs(direction, batch))
        spent = Counter[str]()
        for event in json.loads(Path(session.end_profiling()).read_text()):
            if event["name"] == "model_run":
                spent["all"] += event["dur"]
            elif event["name"].endswith("_kernel_time"):
                spent[event["args"]["op_name"]] += event["dur"]
        spent["between the operators"] = 2 * spent["all"] - spent.total()
        columns.append({name: micros / 1e3 / (runs * batch) for name, micros in spent.items()})
    print(
        f"\n{direction}, fp32 on 1 thread: ms an image" + "".join(f"{f'batch {size}':>16}" for size in sizes)
    )
    for name in sorted(columns[0], key=lambda name: -columns[0][name]):
        if (share := columns[0][name] / columns[0]["all"]) >= 0.01:
            first, last = (column[name] for column in columns)
            print(f"  {name:<30}{first:>15.2f}{share:>7.1%}{last:>9.2f}{last / columns[1]['all']:>7.1%}")


def _start(make: Callable[..., Run], *arguments: Any) -> Worker:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_answer, args=(there, make, *arguments), daemon=True)
    process.start()
    there.close()
    return process, here


def _answer(connection: Connection, make: Callable[..., Run], *arguments: Any) -> None:
    """Receives ((direction, batch), seconds) and sends batches per second, until it receives None."""
    ready = run = None
    while (order := connection.recv()) is not None:
        setting, seconds = order
        if setting != ready:
            run = None  # frees the memory of the previous setting
            run, parallel = make(*arguments, *setting)
            run(parallel)
            ready = setting
        connection.send(_batches_per_second(run, parallel, seconds))


def _batches_per_second(run: Callable[[int], None], parallel: int, seconds: float) -> float:
    began = time.perf_counter()
    run(parallel)
    batches = parallel * math.ceil(seconds / (time.perf_counter() - began))
    began = time.perf_counter()
    run(batches)
    return batches / (time.perf_counter() - began)


def _export(settings: dict[str, int], graphs: Path) -> dict[str, int]:
    """Writes the graphs. Returns the operations of the convolutions on one image, by direction."""
    import torch
    from glowserve_export.frontends.glowserve import fold_glow
    from glowserve_export.graphs import forward_graph, reverse_graph
    from glowserve_export.operations import operations
    from glowserve_export.precision import FP16, FP32, Precision, Ranges
    from glowserve_training.model import Glow, GlowConfig

    torch.manual_seed(0)
    model = Glow(GlowConfig(image_size=_SIZE, channels=_CHANNELS, levels=_LEVELS, **settings))
    images, noise = _inputs("forward", 32).values()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.003 * torch.randn_like(parameter))
        model.log_prob(torch.from_numpy(images), torch.from_numpy(noise))  # initializes the actnorms
    glow = fold_glow(model)
    ranges = {}  # roughly those of these networks
    for each in glow.flow_couplings():
        network = each.coupling.network
        inputs, outputs = np.ones(network.first.weight.shape[1]), np.ones(network.last.outputs)
        ranges[each.name] = Ranges(4 * inputs, (8.0, 8.0), -outputs, outputs)
    counts = {}
    for precision in (Precision("int8", ranges), FP16, FP32):
        (graphs / precision.name).mkdir()
        for direction, make in (("forward", forward_graph), ("reverse", reverse_graph)):
            graph = make(glow, precision)
            (graphs / precision.name / f"{direction}.onnx").write_bytes(graph.SerializeToString())
            counts[direction] = operations(graph)  # fp32 is the last
    return counts


def _inputs(direction: str, batch: int) -> dict[str, Any]:
    rng, shape = np.random.default_rng(0), (batch, _SIZE, _SIZE, _CHANNELS)
    if direction == "reverse":
        return {"latent": rng.standard_normal((batch, math.prod(shape[1:])), np.float32)}
    return {"image": rng.integers(0, 256, shape, np.uint8), "noise": rng.random(shape, np.float32)}


def _pytorch(settings: dict[str, int], precomputed: bool, device: str, direction: str, batch: int) -> Run:
    import torch
    from plain_glow import PlainActNorm, PlainConv, PlainGlow, PlainZeroConv

    torch.manual_seed(0)
    torch.set_default_device(device)
    torch.backends.cudnn.allow_tf32 = False
    torch.set_num_threads(_CORES)
    model = PlainGlow(_SIZE, _CHANNELS, _LEVELS, settings["steps_per_level"], settings["width"], actnorm=True)
    for layer in model.modules():
        if isinstance(layer, PlainActNorm):
            layer.initialized.fill_(1)
            torch.nn.init.normal_(layer.bias, std=0.01)
        elif isinstance(layer, PlainZeroConv):
            torch.nn.init.normal_(layer.conv.weight, std=0.01)
        elif isinstance(layer, PlainConv) and precomputed:
            layer.fold()
    inputs = [torch.from_numpy(array) for array in _inputs(direction, batch).values()]
    call = model.bits_per_dim if direction == "forward" else model.sample

    def run(batches: int) -> None:
        with torch.inference_mode():
            for _ in range(batches):
                call(*(tensor.to(device) for tensor in inputs)).cpu()

    return run, 1


def _onnxruntime(folder: Path, runs: int, threads: int, direction: str, batch: int) -> Run:
    session = _session(folder / f"{direction}.onnx", threads)
    inputs, pool = _inputs(direction, batch), ThreadPoolExecutor(runs)
    assert all(np.isfinite(output).all() for output in session.run(None, inputs))
    return lambda batches: list(pool.map(lambda _: session.run(None, inputs), range(batches))), runs


def _cuda(folder: Path, served: bool, direction: str, batch: int) -> Run:
    """A plain run of ONNX Runtime with inputs and outputs in host memory, or a run as in the service."""
    from glowserve.runtime.buffers import BoundSession
    from glowserve.runtime.config import RuntimeConfig
    from glowserve.runtime.sessions import Graph, open_sessions

    inputs = _inputs(direction, batch)
    graph = Graph(
        (folder / f"{direction}.onnx").read_bytes(), {name: array.shape[1:] for name, array in inputs.items()}
    )
    sizes = (batch,) if served else ()
    _, (session,) = open_sessions([graph], RuntimeConfig(device="cuda", batch_sizes=tuple(sizes)))
    names = [output.name for output in session.get_outputs()]
    runner = BoundSession(session, "cuda", sizes, capture=True) if served else session
    assert all(np.isfinite(output).all() for output in runner.run(names, inputs))
    return lambda batches: [runner.run(names, inputs) for _ in range(batches)], 1


def _session(path: Path, threads: int, profile: Path | None = None) -> Any:
    from glowserve.runtime.ort import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _openvino(folder: Path, hint: str, direction: str, batch: int) -> Run:
    """With a fixed batch size, and in float32 even where the processor has bfloat16."""
    import openvino

    inputs = _inputs(direction, batch)
    core = openvino.Core()
    model = core.read_model(folder / f"{direction}.onnx")
    model.reshape({name: list(array.shape) for name, array in inputs.items()})
    compiled = core.compile_model(model, "CPU", {"PERFORMANCE_HINT": hint, "INFERENCE_PRECISION_HINT": "f32"})
    parallel = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
    queue = openvino.AsyncInferQueue(compiled, parallel)

    def run(batches: int) -> None:
        for _ in range(batches):
            queue.start_async(inputs)
        queue.wait_all()

    return run, parallel


def _sgemm(device: str, direction: str, batch: int) -> Run:
    import torch

    torch.set_num_threads(_CORES)
    a = torch.randn(_MATRIX[device], _MATRIX[device], device=device)

    def run(batches: int) -> None:
        for _ in range(batches):
            torch.mm(a, a)
        if device == "cuda":
            torch.cuda.synchronize()

    return run, 1


if __name__ == "__main__":
    main()
