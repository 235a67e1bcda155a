package quad.sample

import kotlin.math.PI
import kotlin.math.cos
import kotlin.math.min
import kotlin.math.pow
import kotlin.math.sqrt
import org.json.JSONObject

/** DDIM without added noise, in float64; the network sees float32. Source: Song et al. 2021, Eq. 12 with sigma = 0. */
class Ddim(
    schedule: JSONObject,
    private val steps: Int,
) {
    private val training = schedule.getInt("steps")
    private val prediction = schedule.getString("prediction")

    /** The share of signal variance left at each training timestep. */
    val shares: DoubleArray = signalShares(schedule)

    /** Training timesteps of the network's calls, falling. */
    val timesteps: List<Int> = List(steps) { Math.rint(training - it * training.toDouble() / steps).toInt() - 1 }

    fun run(
        noise: FloatArray,
        network: (FloatArray, Float) -> FloatArray,
    ): FloatArray {
        val x = DoubleArray(noise.size) { noise[it].toDouble() }
        val stride = training / steps
        for (t in timesteps) {
            val output = network(FloatArray(x.size) { x[it].toFloat() }, t.toFloat())
            val signal = sqrt(shares[t])
            val rest = sqrt(1 - shares[t])
            val next = if (t >= stride) shares[t - stride] else 1.0
            for (i in x.indices) {
                val (clean, eps) =
                    when (prediction) {
                        "v_prediction" -> Pair(signal * x[i] - rest * output[i], signal * output[i] + rest * x[i])
                        "epsilon" -> Pair((x[i] - rest * output[i]) / signal, output[i].toDouble())
                        else -> Pair(output[i].toDouble(), (x[i] - signal * output[i]) / rest)
                    }
                x[i] = sqrt(next) * clean + sqrt(1 - next) * eps
            }
        }
        return FloatArray(x.size) { x[it].toFloat() }
    }
}

private fun signalShares(schedule: JSONObject): DoubleArray {
    val steps = schedule.getInt("steps")
    val betas = schedule.optJSONArray("trained_betas")?.let { doubles(it) } ?: betas(schedule, steps)
    val shares = DoubleArray(steps)
    var left = 1.0
    for (t in 0 until steps) {
        left *= 1 - betas[t]
        shares[t] = left
    }
    if (!schedule.getBoolean("rescale_zero_snr")) return shares
    val first = sqrt(shares.first())
    val end = sqrt(shares.last())
    return DoubleArray(steps) { ((sqrt(shares[it]) - end) * (first / (first - end))).pow(2) }
}

private fun betas(
    schedule: JSONObject,
    steps: Int,
): DoubleArray {
    val low = schedule.getDouble("beta_start")
    val high = schedule.getDouble("beta_end")
    val kind = schedule.getString("beta_schedule")

    fun between(
        from: Double,
        to: Double,
        t: Int,
    ) = from + (to - from) * t / (steps - 1)

    fun share(t: Int) = cos((t.toDouble() / steps + 0.008) / 1.008 * PI / 2).pow(2)
    return DoubleArray(steps) {
        when (kind) {
            "linear" -> between(low, high, it)
            "scaled_linear" -> between(sqrt(low), sqrt(high), it).pow(2)
            else -> min(1 - share(it + 1) / share(it), 0.999)
        }
    }
}
