package quad.sample

import java.nio.ByteBuffer
import java.nio.ByteOrder
import org.json.JSONObject

/** A tensor as its file holds it: little-endian bytes. */
class Tensor(
    val dtype: String,
    val shape: IntArray,
    val bytes: ByteArray,
) {
    /** Numbers of a float32 tensor. */
    fun floats(): FloatArray {
        require(dtype == "F32") { "expected float32, found $dtype" }
        val numbers = FloatArray(bytes.size / Float.SIZE_BYTES)
        ByteBuffer
            .wrap(bytes)
            .order(ByteOrder.LITTLE_ENDIAN)
            .asFloatBuffer()
            .get(numbers)
        return numbers
    }
}

/** A safetensors file: eight bytes of length, a JSON header, and the numbers. */
fun readTensors(data: ByteArray): Map<String, Tensor> {
    val length =
        ByteBuffer
            .wrap(data, 0, 8)
            .order(ByteOrder.LITTLE_ENDIAN)
            .getLong()
            .toInt()
    val header = JSONObject(String(data, 8, length, Charsets.UTF_8))
    val tensors = mutableMapOf<String, Tensor>()
    for (name in header.keys()) {
        if (name == "__metadata__") continue
        val entry = header.getJSONObject(name)
        val offsets = entry.getJSONArray("data_offsets")
        val first = 8 + length
        val bytes = data.copyOfRange(first + offsets.getInt(0), first + offsets.getInt(1))
        tensors[name] = Tensor(entry.getString("dtype"), ints(entry.getJSONArray("shape")), bytes)
    }
    return tensors
}
