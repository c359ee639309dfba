"""Decompositions of convolution kernels, side by side with tensorly: time, error and memory.

Prints, on this machine and in one run: CP against `tensorly.decomposition.parafac`,
planted tensors, a tensor without a best approximation, the error-preserving correction, nonlinear
against alternating least squares, and VGG-16's thirteen convolutions at a quarter of their
multiply-adds. ``--plot PATH`` draws errors against seconds; ``--only NAME`` runs one part.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import numpy as np
import onnx
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from onnxcp.linalg.als import sweep
from onnxcp.linalg.correction import correct, sensitivity
from onnxcp.linalg.cp import DegenerateWarning, cp, cp_kernel
from onnxcp.linalg.parallel import spread
from onnxcp.linalg.ranks import rank_for_cost
from onnxcp.linalg.svd import channel_svd, spatial_svd
from onnxcp.linalg.tucker import tucker2

Kernel = NDArray[np.floating]

ROOT = Path(__file__).parents[1]
# Output channels, input channels; all 3x3.
VGG16 = [
    (64, 3),
    (64, 64),
    (128, 64),
    (128, 128),
    (256, 128),
    *[(256, 256)] * 2,
    (512, 256),
    *[(512, 512)] * 5,
]
SEEDS = 100


def real_looking(shape: tuple[int, ...], seed: int = 0) -> Kernel:
    """Make a kernel smooth over space, with channels whose spectra fall as those of real ones."""
    rng = np.random.default_rng(seed)
    kernel = gaussian_filter(
        rng.standard_normal(shape), (0, 0, *[0.8] * (len(shape) - 2)), mode="constant"
    )
    for axis in (0, 1):
        size = shape[axis]
        turn = np.linalg.qr(rng.standard_normal((size, size)))[0]
        spectrum = np.arange(1, size + 1) ** -0.5
        kernel = np.moveaxis(np.tensordot(turn * spectrum, kernel, axes=(1, axis)), 0, axis)
    return kernel.astype(np.float32)


def relative(kernel: Kernel, factors: list[Kernel]) -> float:
    made = cp_kernel(factors)
    return float(np.linalg.norm(made - kernel) / np.linalg.norm(kernel))


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def against_tensorly(paths: list[Path], sweeps: int) -> None:
    """Each solver in a process of its own, so that its peak of memory is its own."""
    print(f"## CP against tensorly: {sweeps} sweeps each, then ours for as long as tensorly took\n")
    print("Of ours, a sweep is what each of 20 more takes.\n")
    print("| kernel | R | solver | s/sweep | times fewer | error | peak above the start, MiB |")
    print("|---|---|---|---|---|---|---|")
    cases = [("256,256,3,3", 128), ("512,512,3,3", 256), ("512,512,3,3", 500)]
    cases += [(f"{path}", 0) for path in paths]
    for name, rank in cases:
        rows = [_solved(name, rank, "tensorly", sweeps, 0.0)]
        spent = rows[0][1] * sweeps
        rows += [_solved(name, rank, "ours", sweeps, 0.0), _solved(name, rank, "ours", 0, spent)]
        labels = ("tensorly", "ours, equal sweeps", "ours, equal seconds")
        for label, (used, seconds, error, memory) in zip(labels, rows, strict=True):
            ratio = rows[0][1] / seconds
            cells = f"{seconds:.3f} | {ratio:.1f}x | {error:.4f} | {memory:.0f}"
            print(f"| {Path(name).name} | {used} | {label} | {cells} |", flush=True)
    print()


def _solved(
    name: str, rank: int, solver: str, sweeps: int, seconds: float
) -> tuple[int, float, float, float]:
    """Run one solver elsewhere; return rank, seconds a sweep, error and peak memory."""
    arguments = ["--one", name, str(rank), solver, str(sweeps), str(seconds)]
    command = [sys.executable, "-m", "benchmarks.decompose", *arguments]
    out = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    used, *values = out.split()[-4:]
    return int(used), float(values[0]), float(values[1]), float(values[2])


def one(name: str, rank: int, solver: str, sweeps: int, seconds: float) -> None:
    """Run one solver; what `_solved` reads."""
    if name[0].isdigit():
        kernel = real_looking(tuple(map(int, name.split(","))))
    else:
        kernel = largest(Path(name))
        rank = max(1, kernel.size // 4 // sum(kernel.shape))
    if solver == "tensorly":
        from tensorly.decomposition import parafac

        before, begun = peak_mib(), perf_counter()
        found = parafac(
            kernel, rank, n_iter_max=sweeps, init="random", random_state=0, tol=0
        ).factors
        # tol=0 still has it compute the error of every sweep, as ours does.
        spent = (perf_counter() - begun) / sweeps
        after = peak_mib()
        weights = found
    else:
        cp(real_looking((32, 32, 3, 3)), 8)  # warms up BLAS
        before = peak_mib()
        if not sweeps:
            trial = cp(kernel, rank, sweeps=20, tol=0)
            sweeps = max(1, int(seconds / (trial.seconds / trial.sweeps)))
            sweeps = min(sweeps, 1000)
        result = cp(kernel, rank, sweeps=sweeps, tol=0)
        weights = list(result.factors)
        after = peak_mib()
        # What is done once, ahead of the sweeps and after them, is told apart by the slope.
        more = cp(kernel, rank, sweeps=result.sweeps + 20, tol=0)
        spent = max(more.seconds - result.seconds, 0.0) / 20
    error = relative(kernel, [np.asarray(each) for each in weights])
    print(rank, spent, error, after - before)


def largest(path: Path) -> Kernel:
    """Return the largest kernel over space of a network."""
    model = onnx.load(path)
    kernels = [onnx.numpy_helper.to_array(each) for each in model.graph.initializer]
    kernels = [each for each in kernels if each.ndim == 4 and each.shape[2] * each.shape[3] > 1]
    return max(kernels, key=lambda each: each.size).astype(np.float32)


def planted() -> None:
    print(f"## Planted tensors: relative error below 1e-6, of {SEEDS} seeds\n")
    print("| shape | R | found | largest error of the others |")
    print("|---|---|---|---|")
    cases = [((8, 9, 7), (1, 4, 7)), ((16, 3, 3, 24), (1, 2, 3)), ((64, 9, 64), (1, 5, 9))]
    for shape, ranks in cases:
        for rank in ranks:
            errors = []
            for seed in range(SEEDS):
                rng = np.random.default_rng(1000 + seed)
                tensor = cp_kernel([rng.standard_normal((dim, rank)) for dim in shape])
                errors.append(cp(tensor, rank, sweeps=400, starts=2, seed=seed).relative_error)
            missed = [each for each in errors if each >= 1e-6]
            worst = f"{max(missed):.2g}" if missed else ""
            print(f"| {shape} | {rank} | {SEEDS - len(missed)} | {worst} |", flush=True)
    rng = np.random.default_rng(0)
    tensor = cp_kernel([rng.standard_normal((dim, 12)) for dim in (8, 9, 7)])
    found = cp(tensor, 12, sweeps=400)
    print(f"\nRank 12 of (8, 9, 7), beyond the smallest axis: {found.relative_error:.2g}\n")


def border() -> None:
    print("## A rank-3 tensor without a best approximation of rank 2\n")
    a, b = np.eye(2)
    tensor = sum(np.einsum("i,j,k", *term) for term in [(a, a, b), (a, b, a), (b, a, a)])
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        result = cp(tensor, 2, sweeps=1000)
    print(f"error {result.relative_error:.3f}, squared norms of the terms {result.norm_sum:.3g}")
    told = [str(each.message) for each in seen if each.category is DegenerateWarning]
    print(f"warning: {told[0] if told else 'none'}\n")


def plain_als(kernel: Kernel, rank: int, sweeps: int) -> tuple[list[Kernel], float]:
    """ALS without a ridge, an extrapolation or a look at norms: what is usually run."""
    unfolded = kernel.reshape(len(kernel), -1).astype(np.float64)
    unfolded = unfolded / np.linalg.norm(unfolded)
    rng = np.random.default_rng(0)
    factors = tuple(rng.standard_normal((dim, rank)) for dim in kernel.shape)
    for _ in range(sweeps):
        fit = sweep(unfolded, factors, 1e-12)
        factors = fit.factors
    return list(factors), fit.error


def conv_kernels() -> dict[str, tuple[Kernel, int]]:
    model = onnx.load(ROOT / "models/charnet/charnet.onnx")
    held = [onnx.numpy_helper.to_array(each) for each in model.graph.initializer]
    (conv2,) = (each for each in held if each.shape == (128, 48, 9, 9))
    return {
        "AlexNet conv2-like 96->256 5x5, R=140": (real_looking((256, 96, 5, 5)), 140),
        "AlexNet conv2-like 96->256 5x5, R=200": (real_looking((256, 96, 5, 5)), 200),
        "CharNet-like 48->128 9x9, R=64": (real_looking((128, 48, 9, 9)), 64),
        "CharNet conv2 48->128 9x9, R=64": (conv2, 64),
    }


def correction() -> None:
    print("## Error-preserving correction: sensitivity after 200 sweeps of plain ALS, and ours\n")
    print("| kernel | plain: error | sensitivity | corrected: error | sensitivity | falls | ours |")
    print("|---|---|---|---|---|---|---|")
    for name, (kernel, rank) in conv_kernels().items():
        factors, squared = plain_als(kernel, rank, 200)
        unfolded = kernel.reshape(len(kernel), -1).astype(np.float64)
        norm = float(np.linalg.norm(unfolded))
        calm = correct(unfolded / norm, tuple(factors), 1.01**2 * squared, sweeps=200, tol=1e-3)
        before, after = sensitivity(tuple(factors)), sensitivity(calm.factors)
        ours = cp(kernel, rank, slack=0.01)
        unit = ours.sensitivity / norm ** (2 - 2 / kernel.ndim)
        print(
            f"| {name} | {squared**0.5:.4f} | {before:.3g} | {calm.error**0.5:.4f} | {after:.3g} "
            f"| {before / after:.1f}x | {ours.relative_error:.4f}, {before / unit:.1f}x less |",
            flush=True,
        )
    print()


def solvers(plot: Path | None) -> None:
    print("## NLS against ALS: relative error after so many iterations, and seconds\n")
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for name, (kernel, rank) in conv_kernels().items():
        curves[name] = {}
        for solver in ("als", "nls", "auto"):
            points = []
            for sweeps in (10, 20, 40, 80, 160):
                found = cp(kernel, rank, sweeps=sweeps, solver=solver, tol=0)
                points.append((found.seconds, found.relative_error))
            curves[name][solver] = points
            row = ", ".join(f"{error:.4f} in {seconds:.2f} s" for seconds, error in points)
            print(f"{name}, {solver}: {row}", flush=True)
    print()
    if plot is not None:
        draw(curves, plot)


def draw(curves: dict[str, dict[str, list[tuple[float, float]]]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(curves), figsize=(4 * len(curves), 3.6))
    for axis, (name, lines) in zip(axes, curves.items(), strict=True):
        for solver, points in lines.items():
            seconds, errors = zip(*points, strict=True)
            axis.plot(seconds, errors, marker="o", label=solver)
        axis.set_title(name, fontsize=9)
        axis.set_xscale("log")
        axis.set_xlabel("seconds")
    axes[0].set_ylabel("relative error")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path)


def vgg16() -> None:
    print("## VGG-16's 13 convolutions at a quarter of the multiply-adds, layers side by side\n")
    print("| family | seconds |")
    print("|---|---|")
    kernels = [real_looking((*shape, 3, 3), seed) for seed, shape in enumerate(VGG16)]
    budgets = [each.size / 4 for each in kernels]

    def fitting(cost: Callable[[int, int, int], float], kernel: Kernel, budget: float) -> int:
        outputs, inputs = kernel.shape[:2]
        return rank_for_cost(
            np.array([float(cost(rank, outputs, inputs)) for rank in range(1, 1024)]), budget
        )

    families: dict[str, tuple[Callable[..., object], Callable[[int, int, int], float]]] = {
        "channel": (channel_svd, lambda r, t, s: r * (9 * s + t)),
        "spatial": (spatial_svd, lambda r, t, s: 3 * r * (s + t)),
        "Tucker-2": (tucker2, lambda r, t, s: r * min(r, s) * 9 + r * t + min(r, s) * s),
        "CP3": (_cp3, lambda r, t, s: r * (s + t + 9)),
    }
    for name, (family, cost) in families.items():
        ranks = [fitting(cost, *pair) for pair in zip(kernels, budgets, strict=True)]
        if name == "Tucker-2":
            jobs = [(k, (min(r, k.shape[1]), r)) for k, r in zip(kernels, ranks, strict=True)]
        else:
            jobs = list(zip(kernels, ranks, strict=True))
        begun = perf_counter()
        spread(family, jobs)
        print(f"| {name} | {perf_counter() - begun:.1f} |", flush=True)
    print()


def _cp3(kernel: Kernel, rank: int) -> object:
    return cp(kernel.reshape(*kernel.shape[:2], -1), rank, sweeps=40)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("kernels", nargs="*", type=Path, help="networks: their largest kernels")
    parser.add_argument("--sweeps", type=int, default=3, help="of CP against tensorly")
    parser.add_argument("--plot", type=Path, help="where to draw errors against seconds")
    parser.add_argument("--only", help="one part: tensorly, planted, border, epc, nls or vgg16")
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        name, rank, solver, sweeps, seconds = given.one
        one(name, int(rank), solver, int(sweeps), float(seconds))
        return
    parts: dict[str, Callable[[], None]] = {
        "tensorly": lambda: against_tensorly(given.kernels, given.sweeps),
        "planted": planted,
        "border": border,
        "epc": correction,
        "nls": lambda: solvers(given.plot),
        "vgg16": vgg16,
    }
    for name, part in parts.items():
        if given.only in (None, name):
            part()


if __name__ == "__main__":
    main()
