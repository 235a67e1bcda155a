package quad.sample

import kotlin.math.abs
import kotlin.math.max
import kotlin.math.sqrt
import org.json.JSONObject

/** Means over `grid` by `grid` blocks of planes of `rows` by `columns`, split as `numpy.array_split` does. */
fun blockMeans(
    values: FloatArray,
    rows: Int,
    columns: Int,
    grid: Int,
): DoubleArray {
    val planes = values.size / (rows * columns)
    val means = mutableListOf<Double>()
    for (plane in 0 until planes) {
        for (row in parts(rows, grid)) {
            for (column in parts(columns, grid)) {
                var sum = 0.0
                for (y in row) for (x in column) sum += values[(plane * rows + y) * columns + x]
                means += sum / (row.count() * column.count())
            }
        }
    }
    return means.toDoubleArray()
}

private fun parts(
    size: Int,
    grid: Int,
): List<IntRange> {
    val count = minOf(grid, size)
    val longer = size % count
    var start = 0
    return List(count) { index ->
        val length = size / count + if (index < longer) 1 else 0
        (start until start + length).also { start += length }
    }
}

/** The largest difference of one mean over the RMS of the vector's, see docs/formats.md. */
fun distance(
    vector: JSONObject,
    answer: DoubleArray,
): Double {
    val expected = doubles(vector.getJSONArray("values"))
    require(expected.size == answer.size) { "expected ${expected.size} means, found ${answer.size}" }
    var largest = 0.0
    for (i in expected.indices) largest = max(largest, abs(expected[i] - answer[i]))
    return largest / sqrt(expected.sumOf { it * it } / expected.size)
}
