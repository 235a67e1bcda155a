package quad.sample

import org.json.JSONObject

/** One attach point of LoRA weights: two inputs of a graph. */
class Slot(
    json: JSONObject,
) {
    val path: String = json.getString("path")
    val component: String = json.optString("component", "unet")
    val rank: Int = json.getInt("rank")
    val dtype: String = json.getString("dtype")
    private val outputs = json.getInt("out_features")
    private val inputs = json.getInt("in_features") * (if (json.getString("kind") == "conv") ints(json.getJSONArray("kernel")).reduce(Int::times) else 1)
    private val size = mapOf("int8" to 1, "int16" to 2, "float32" to 4).getValue(dtype)

    /** A `(rank, in, ...)`, of an adapter that has fewer rows: zeros below them. */
    fun a(own: Tensor?): ByteArray = (own?.bytes ?: ByteArray(0)).copyOf(rank * inputs * size)

    /** B `(out, rank, ...)`, of an adapter that has fewer columns: zeros beside them. */
    fun b(own: Tensor?): ByteArray {
        val bytes = ByteArray(outputs * rank * size)
        if (own == null) return bytes
        val width = own.shape[1] * size
        for (row in 0 until outputs) own.bytes.copyInto(bytes, row * rank * size, row * width, (row + 1) * width)
        return bytes
    }
}

/** The slot inputs of one graph with an adapter, zeros where it has none: bytes by input name. */
fun slotBytes(
    slots: List<Slot>,
    tensors: Map<String, Tensor>,
): Map<String, ByteArray> =
    slots
        .flatMap { slot ->
            listOf(
                "${slot.path}.lora_A" to slot.a(tensors["${slot.path}.lora_A"]),
                "${slot.path}.lora_B" to slot.b(tensors["${slot.path}.lora_B"]),
            )
        }.toMap()

/** The scales of normalised slots, of all slots one after the other. */
fun slotScales(
    slots: List<Slot>,
    tensors: Map<String, Tensor>,
): FloatArray =
    slots
        .flatMap { slot -> (tensors["${slot.path}.lora_scale"]?.floats() ?: FloatArray(0)).copyOf(slot.rank).asList() }
        .toFloatArray()
