package quad.sample

import com.google.ai.edge.litert.TensorBuffer
import java.nio.ByteBuffer
import java.nio.ByteOrder
import kotlin.math.cos
import kotlin.math.exp
import kotlin.math.ln
import kotlin.math.sin
import org.json.JSONObject

/** How floats enter or leave a graph: one entry of `ports.json`, or an encoding of `profile.json`. */
class Port(
    private val json: JSONObject,
) {
    val dtype: String = json.getString("dtype")
    private val encoding: JSONObject? = json.optJSONObject("encoding")
    private val waves: JSONObject? = json.optJSONObject("sinusoid")
    private val scale: Float = encoding?.getJSONArray("scale")?.getDouble(0)?.toFloat() ?: 1f
    private val zero: Int = encoding?.getJSONArray("zero_point")?.getInt(0) ?: 0

    /** Numbers as the graph computes with them: a timestep's waves, then steps of the scale. */
    fun floats(values: FloatArray): FloatArray = if (waves == null) values else embedded(values[0])

    /** Integers of 16 or 8 bits as bytes, for a port that has an encoding. */
    fun bytes(values: FloatArray): ByteArray {
        val wide = dtype == "int16"
        val end = if (wide) Short.MAX_VALUE.toInt() else Byte.MAX_VALUE.toInt()
        val largest = encoding?.optInt("largest", end) ?: end
        val least = if (encoding?.getBoolean("symmetric") == true) -largest else -end - 1
        val numbers = floats(values)
        val bytes = ByteBuffer.allocate(numbers.size * if (wide) 2 else 1).order(ByteOrder.LITTLE_ENDIAN)
        for (value in numbers) {
            // Ties go to the even integer, as everywhere in quad.
            val integer = (Math.rint((value / scale).toDouble()) + zero).coerceIn(least.toDouble(), largest.toDouble()).toInt()
            if (wide) bytes.putShort(integer.toShort()) else bytes.put(integer.toByte())
        }
        return bytes.array()
    }

    /** As bytes or floats, whatever the graph's input is. */
    fun write(
        values: FloatArray,
        buffer: TensorBuffer,
    ) = if (dtype == "float32") buffer.writeFloat(floats(values)) else buffer.writeInt8(bytes(values))

    /** Floats of a graph's 8-bit output. */
    fun decoded(integers: ByteArray): FloatArray = FloatArray(integers.size) { (integers[it] - zero) * scale }

    companion object {
        /** Of an encoding alone. */
        fun of(encoding: JSONObject): Port = Port(JSONObject().put("dtype", "int${encoding.getInt("bits")}").put("encoding", encoding))

        val FLOATS = Port(JSONObject().put("dtype", "float32"))
    }

    private fun embedded(timestep: Float): FloatArray {
        val half = waves!!.getInt("channels") / 2
        val cosineFirst = waves.optBoolean("cosine_first", true)
        val exponent = -ln(waves.optDouble("period", 10000.0)).toFloat()
        val shift = waves.optDouble("shift", 0.0).toFloat()
        return FloatArray(2 * half) { place ->
            val angle = timestep * exp(exponent * (place % half) / (half - shift))
            if ((place < half) == cosineFirst) cos(angle) else sin(angle)
        }
    }
}
