"""OLSS, the solver: which steps of a teacher to keep, and the weights that best reach its states from them.

    symbol     here             meaning
    N, n       `total`, `n`     steps of the teacher, steps kept
    x_i, e_i                    teacher state and network output before step i; x_0 is the noise, x_N the result
    i_k        `path[k]`        kept indices, i_0 = 0 < ... < i_{n-1}; i_n = N
    G          `gram`           inner products of x_0..x_N, e_0..e_{N-1}, per element; the basis (x_0, e) carries the ridge
    R          `rows`           rows of G's Cholesky factor, one per basis vector taken so far
    r_j^2      `left`           what of x_j (mean square per element) the basis taken so far does not reach

For each k: min || x_{i_{k+1}} - (w_k x_0 + sum_{j<=k} v_kj e_{i_j}) ||^2. The bound of a path is its largest step error r.
G is computed once; after that no array of latent size is touched: all paths are judged from G.
Source: Duan et al. 2023 (arXiv 2305.14677), Eqs. 9-12 and Algorithm 1; docs/method.md section 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from quad.core.errors import InputError, UsageError, mismatch
from quad.core.manifest import OlssTable
from quad.runtime.samplers.olss.trajectory import Trajectory
from quad.runtime.samplers.schedule import Array

# Relative to the mean square of the basis: neighbouring outputs of a long teacher are nearly parallel.
RIDGE = 1e-8
BISECTIONS = 40
ROUNDING = 1e-14

Path = tuple[int, ...]


@dataclass(frozen=True)
class _Span:
    """The subspace spanned by the basis vectors taken so far, as rows of a Cholesky factor of G."""

    gram: Array
    rows: Array
    left: Array

    def take(self, basis: int) -> _Span:
        """The span with one more basis vector, given by its place in G."""
        if self.left[basis] <= ROUNDING * self.gram[basis, basis]:
            return self  # it lies in the span already; only a ridge of nothing lets this happen
        row = (self.gram[basis] - self.rows[:, basis] @ self.rows) / np.sqrt(self.left[basis])
        return replace(self, rows=np.vstack([self.rows, row]), left=self.left - row**2)


@dataclass(frozen=True)
class _Problem:
    """The Gram matrix of N teacher steps, `ridge` on its basis included; x_i is at place i, e_i at place N + 1 + i."""

    gram: Array
    total: int
    ridge: float

    def start(self) -> _Span:
        """The span of the noise x_0 alone, with which every path begins."""
        return _Span(self.gram, np.zeros((0, len(self.gram))), np.diag(self.gram).copy()).take(0)

    def output(self, index: int) -> int:
        """The place of e_index in G."""
        return self.total + 1 + index


def _stacked(trajectories: Sequence[Trajectory]) -> Array:
    """All runs side by side: x_0..x_N, e_0..e_{N-1} by rows, float64 (2N + 1, elements of all runs)."""
    if not trajectories:
        raise InputError(mismatch("olss solver", "at least one teacher run", "none", "record some with record_trajectory"))
    first = trajectories[0].timesteps
    for run in trajectories:
        if run.timesteps != first:
            raise InputError(mismatch("olss solver", "runs over the same timesteps", "others", "record all with one teacher"))
        if len(run.states) != len(first) + 1 or len(run.outputs) != len(first):
            counts = f"{len(run.states)} and {len(run.outputs)}"
            raise InputError(mismatch("olss solver", f"{len(first) + 1} states and {len(first)} outputs", counts, "record it again"))
    blocks = [np.concatenate([run.states, run.outputs]).reshape(2 * len(first) + 1, -1) for run in trajectories]
    data = np.concatenate(blocks, axis=1, dtype=np.float64)
    if not np.isfinite(data).all():
        raise InputError(mismatch("olss solver", "finite teacher runs", "NaN or infinity", "check the teacher"))
    return data


def _problem(trajectories: Sequence[Trajectory], ridge: float) -> _Problem:
    """The Gram matrix per element, with the ridge on the basis."""
    data = _stacked(trajectories)
    total = len(trajectories[0].timesteps)
    gram = data @ data.T / data.shape[1]
    basis = np.r_[0, total + 1 : 2 * total + 1]
    added = ridge * float(np.mean(gram[basis, basis]))
    gram[basis, basis] += added
    return _Problem(gram, total, added)


def _farthest(problem: _Problem, bound: float, n: int) -> Path | None:
    """The path that always goes to the farthest state reached within `bound` (mean square), or None if n steps do not do."""
    path: list[int] = []
    span, index = problem.start(), 0
    while index < problem.total and len(path) < n:
        path.append(index)
        span = span.take(problem.output(index))
        reached = np.flatnonzero(span.left[index + 1 : problem.total + 1] <= bound)
        if not reached.size:
            return None
        index += 1 + int(reached[-1])
    return tuple(path) if index == problem.total else None


def _errors(problem: _Problem, path: Path) -> Array:
    """The mean square error of each step of a path, float64 (len(path),)."""
    span, errors = problem.start(), []
    for index, target in zip(path, (*path[1:], problem.total), strict=True):
        span = span.take(problem.output(index))
        errors.append(max(float(span.left[target]), 0.0))
    return np.asarray(errors)


def _rank(problem: _Problem, path: Path) -> tuple[float, float]:
    """The rank of a path, smaller is better: its bound, then the sum of its errors (mean squares)."""
    errors = _errors(problem, path)
    return float(errors.max()), float(errors.sum())


def _bisected(problem: _Problem, n: int) -> Path:
    """The path of at most n steps with the smallest bound that bisection over greedy paths finds."""
    best: Path = (0,)
    low, high = 0.0, _rank(problem, best)[0]
    for _ in range(BISECTIONS):
        middle = (low + high) / 2.0
        path = _farthest(problem, middle, n)
        if path is None:
            low = middle
        else:
            best, high = path, min(middle, _rank(problem, path)[0])
    return best


def _lengthened(problem: _Problem, path: Path) -> Path:
    """The path with one more index, that which leaves the smallest bound (then the smallest sum)."""
    longer = [tuple(sorted((*path, index))) for index in range(problem.total) if index not in path]
    return min(longer, key=lambda p: _rank(problem, p))


def _best_path(problem: _Problem, n: int) -> Path:
    """Exactly n kept indices; for n = 1, 2, ... in turn, so that the bound of one more step is not above that of the last.

    A greedy path may be shorter than asked for: it is then lengthened index by index.
    """
    if n == problem.total:
        return tuple(range(n))
    path: Path = (0,)
    for steps in range(2, n + 1):
        candidate = _bisected(problem, steps)
        while len(candidate) < steps:
            candidate = _lengthened(problem, candidate)
        path = min(candidate, _lengthened(problem, path), key=lambda p: _rank(problem, p))
    return path


def _fitted(problem: _Problem, path: Path) -> list[Array]:
    """For each step of a path the weights (w_k, v_k0, ..., v_kk), by least squares with the ridge."""
    weights: list[Array] = []
    for k, target in enumerate((*path[1:], problem.total)):
        basis = [0, *(problem.output(index) for index in path[: k + 1])]
        solved = np.linalg.lstsq(problem.gram[np.ix_(basis, basis)], problem.gram[basis, target], rcond=None)[0]
        weights.append(np.asarray(solved, dtype=np.float64))
    return weights


def _unrolled(problem: _Problem) -> list[Array]:
    """The teacher's own weights: each step of its sampler is x_{i+1} = a x_i + b e_i, of which a and b are read off.

    Where all steps are kept this is exact, and the ridge is not.
    """
    weights: list[Array] = []
    state = np.array([1.0])
    for index in range(problem.total):
        pair = [index, problem.output(index)]
        square = problem.gram[np.ix_(pair, pair)] - np.diag([problem.ridge * (index == 0), problem.ridge])
        a, b = np.linalg.lstsq(square, problem.gram[pair, index + 1], rcond=None)[0]
        state = np.append(a * state, b)
        weights.append(state)
    return weights


def solve_olss(trajectories: Sequence[Trajectory], n: int, ridge: float = RIDGE) -> OlssTable:
    """The n-step table that follows the teacher's runs best; n == N gives the teacher itself.

    Args:
        trajectories: teacher runs over the same N timesteps, of any shapes.
        n: steps to keep, 1 to N.
        ridge: relative to the mean square of noise and outputs; more is steadier where outputs are noisy.

    Raises:
        UsageError: n is outside 1..N.
        InputError: no runs, runs of different timesteps, or numbers that are not finite.

    Source: docs/method.md section 6.
    """
    problem = _problem(trajectories, ridge)
    if not 1 <= n <= problem.total:
        expected = f"1 to {problem.total} steps, as the teacher has"
        raise UsageError(mismatch("olss solver", expected, n, "ask for fewer or record a longer teacher"))
    path = _best_path(problem, n)
    weights = _unrolled(problem) if n == problem.total else _fitted(problem, path)
    timesteps = tuple(trajectories[0].timesteps[index] for index in path)
    return OlssTable(timesteps, tuple(float(c[0]) for c in weights), tuple(tuple(float(v) for v in c[1:]) for c in weights))


def olss_error(trajectories: Sequence[Trajectory], table: OlssTable) -> float:
    """The largest step error of a table on teacher runs, root mean square per element: the bound its path was chosen by.

    Raises:
        InputError: the runs do not fit together, or do not visit the table's timesteps.
    """
    data = _stacked(trajectories)
    timesteps = trajectories[0].timesteps
    if not set(table.timesteps) <= set(timesteps):
        raise InputError(mismatch("olss table", "timesteps of the teacher", list(table.timesteps), "record the runs with its teacher"))
    path = [timesteps.index(t) for t in table.timesteps]
    worst = 0.0
    for k, target in enumerate((*path[1:], len(timesteps))):
        reached = table.w[k] * data[0] + np.asarray(table.v[k]) @ data[[len(timesteps) + 1 + i for i in path[: k + 1]]]
        worst = max(worst, float(np.sqrt(np.mean((data[target] - reached) ** 2))))
    return worst
