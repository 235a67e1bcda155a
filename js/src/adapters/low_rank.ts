/**
 * The nearest product of a slot's rank to a sum of products that has more, in the units of the slot's lattice.
 *
 *     sum_i w_i B_i A_i = B A = Q_B (R_B R_A^T) Q_A^T = (Q_B U) S (Q_A V)^T      kept: the largest of S, as many as the slot has ranks
 *
 * Symbols and method as in `quad.runtime.adapters.low_rank`; the decomposition is one-sided Jacobi's, so that a pair of singular vectors may
 * have another sign than LAPACK gives them in Python: the product is the same, its integers are not.
 * Source of the decomposition: Hestenes 1958, "Inversion of matrices by biorthogonalization".
 */

export type Rows = readonly Float64Array[];

/** How much longer a row of A may become than the longest of the parts. */
export const MID_ROOM = Math.SQRT2;
const NOISE = 1e-12;
const SWEEPS = 60;

/** Rows of A `(r, in)`, columns of B `(r, out)`, not rounded, and which share of the sum's energy they keep. */
export interface Nearest {
  readonly a: Rows;
  readonly b: Rows;
  readonly energy: number;
}

/** The best product of `rank` channels; `a` holds rows, `b` columns, and entries may have the magnitude `largest`. */
export function nearest(a: Rows, b: Rows, rank: number, largest: number): Nearest {
  const down = orthogonalised(a);
  const up = orthogonalised(b);
  // The core R_B R_A^T, by columns.
  const core = a.map((_, column) => Float64Array.from(b, (_, row) => dot(up.triangle[row]!, down.triangle[column]!)));
  const { left, values, right } = singular(core);
  const total = values.reduce((sum, value) => sum + value * value, 0);
  const kept = values.slice(0, rank).filter((value) => value > NOISE * Math.max(0, ...values));
  const half = kept.map(Math.sqrt);
  const even = evenTransform(kept.length);
  const rowsA = combined(
    even,
    half.map((root, k) => scaled(weightedSum(right[k]!, down.basis), root)),
  );
  const rowsB = combined(
    even,
    half.map((root, k) => scaled(weightedSum(left[k]!, up.basis), root)),
  );
  const longest = MID_ROOM * Math.max(0, ...a.map(norm));
  const channels = rowsA.map((row, k) => {
    const column = rowsB[k]!;
    const best = Math.sqrt((Math.sqrt(row.length / column.length) * norm(column)) / norm(row));
    const gain = Math.min(Math.max(best, peak(column) / largest), Math.min(largest / peak(row), longest / norm(row)));
    return { row: scaled(row, gain), column: scaled(column, 1 / gain) };
  });
  const energy = total ? kept.reduce((sum, value) => sum + value * value, 0) / total : 1;
  return { a: channels.map(({ row }) => row), b: channels.map(({ column }) => column), energy };
}

/** The largest magnitude of a row, 0 where it is empty. */
export function peak(row: Float64Array): number {
  return row.reduce((largest, value) => Math.max(largest, Math.abs(value)), 0);
}

/** Euclidean length. */
export function norm(row: Float64Array): number {
  return Math.sqrt(dot(row, row));
}

/** A row times a number. */
export function scaled(row: Float64Array, factor: number): Float64Array {
  return row.map((value) => value * factor);
}

function dot(a: Float64Array, b: Float64Array): number {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i]! * b[i]!;
  return sum;
}

/** Orthonormal vectors that span the given ones, and `triangle[i][j]`, how much of vector i is in given j. Gram and Schmidt, twice. */
function orthogonalised(given: Rows): { readonly basis: Rows; readonly triangle: Rows } {
  const basis: Float64Array[] = [];
  const triangle = given.map(() => new Float64Array(given.length));
  for (const [column, vector] of given.entries()) {
    const rest = Float64Array.from(vector);
    for (let pass = 0; pass < 2; pass++) {
      for (const [row, axis] of basis.entries()) {
        const share = dot(axis, rest);
        triangle[row]![column]! += share;
        for (let i = 0; i < rest.length; i++) rest[i]! -= share * axis[i]!;
      }
    }
    const length = norm(rest);
    const isDependent = length <= 1e-14 * norm(vector);
    triangle[column]![column] = isDependent ? 0 : length;
    basis.push(isDependent ? new Float64Array(rest.length) : scaled(rest, 1 / length));
  }
  return { basis, triangle };
}

/** Singular values of a square matrix given by columns, falling, with their left and right vectors. */
function singular(matrix: Rows): { readonly left: Rows; readonly values: readonly number[]; readonly right: Rows } {
  const count = matrix.length;
  const columns = matrix.map((column) => Float64Array.from(column));
  const turns = matrix.map((_, i) => Float64Array.from({ length: count }, (_, j) => (i === j ? 1 : 0)));
  for (let sweep = 0; sweep < SWEEPS && !isOrthogonal(columns, turns); sweep++);
  const order = columns.map(norm).map((value, index) => ({ value, index }));
  order.sort((a, b) => b.value - a.value);
  return {
    values: order.map(({ value }) => value),
    left: order.map(({ value, index }) => (value > 0 ? scaled(columns[index]!, 1 / value) : columns[index]!)),
    right: order.map(({ index }) => turns[index]!),
  };
}

/** One sweep of rotations over all pairs of columns; whether there was nothing to rotate. */
function isOrthogonal(columns: readonly Float64Array[], turns: readonly Float64Array[]): boolean {
  let isDone = true;
  for (let p = 0; p < columns.length; p++) {
    for (let q = p + 1; q < columns.length; q++) {
      const [a, b] = [columns[p]!, columns[q]!];
      const [alpha, beta, gamma] = [dot(a, a), dot(b, b), dot(a, b)];
      if (Math.abs(gamma) <= 1e-15 * Math.sqrt(alpha * beta) || gamma === 0) continue;
      isDone = false;
      const zeta = (beta - alpha) / (2 * gamma);
      const tangent = (zeta >= 0 ? 1 : -1) / (Math.abs(zeta) + Math.sqrt(1 + zeta * zeta));
      const cosine = 1 / Math.sqrt(1 + tangent * tangent);
      rotate(a, b, cosine, cosine * tangent);
      rotate(turns[p]!, turns[q]!, cosine, cosine * tangent);
    }
  }
  return isDone;
}

function rotate(a: Float64Array, b: Float64Array, cosine: number, sine: number): void {
  for (let i = 0; i < a.length; i++) {
    const [x, y] = [a[i]!, b[i]!];
    a[i] = cosine * x - sine * y;
    b[i] = sine * x + cosine * y;
  }
}

function weightedSum(weights: Float64Array, rows: Rows): Float64Array {
  const sum = new Float64Array(rows[0]!.length);
  for (const [index, row] of rows.entries()) {
    const weight = weights[index]!;
    for (let i = 0; i < sum.length; i++) sum[i]! += weight * row[i]!;
  }
  return sum;
}

/** Each row of `matrix` as weights of the rows. */
function combined(matrix: Rows, rows: Rows): Rows {
  return matrix.map((weights) => weightedSum(weights, rows));
}

/** The orthogonal cosine transform, which gives every channel a like share of all singular values. */
function evenTransform(rank: number): Rows {
  const share = Math.sqrt(2 / Math.max(rank, 1));
  return Array.from({ length: rank }, (_, j) =>
    Float64Array.from({ length: rank }, (_, k) => {
      const cosine = share * Math.cos((Math.PI * (2 * j + 1) * k) / (2 * rank));
      return k === 0 ? cosine / Math.SQRT2 : cosine;
    }),
  );
}
