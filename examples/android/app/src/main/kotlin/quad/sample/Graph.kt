package quad.sample

import com.google.ai.edge.litert.Accelerator
import com.google.ai.edge.litert.CompiledModel
import com.google.ai.edge.litert.TensorBuffer

/** One component of a bundle on LiteRT: inputs by name, slots written once and kept until others are bound. */
class Graph(
    private val files: BundleFiles,
    private val component: String,
) : AutoCloseable {
    private val slots = files.slots.filter { it.component == component }
    private val ports = files.json("$component/ports.json")
    private val inputPorts = ports.getJSONObject("inputs").let { all -> all.keys().asSequence().associateWith { Port(all.getJSONObject(it)) } }
    private val outputName = ports.getJSONObject("outputs").keys().next()
    private val outputPort = Port(ports.getJSONObject("outputs").getJSONObject(outputName))
    private val options = CompiledModel.Options(Accelerator.CPU)
    private val model = CompiledModel.create(files.assets, files.path("$component/model.tflite"), options)
    private val slotNames = slots.flatMap { listOf("${it.path}.lora_A", "${it.path}.lora_B") }
    private val scales = if (files.normalised && slots.isNotEmpty()) "$component.lora_scales" else null
    private val names = inputPorts.keys + slotNames + listOfNotNull(scales)
    private val inputs: Map<String, TensorBuffer> = names.associateWith { model.createInputBuffer(it) }
    private val output: TensorBuffer = model.createOutputBuffer(outputName)

    // TensorBuffer.readInt8 gives half of a 16-bit tensor; this graph makes floats of it.
    private val widen =
        if (outputPort.dtype == "int16") CompiledModel.create(files.assets, files.path("$component/widen.tflite"), options) else null
    private val widened = widen?.createOutputBuffer("float")

    /** Make an adapter the slots' numbers, null for none. */
    fun bind(adapter: String?) {
        if (slots.isEmpty()) return
        val tensors = if (adapter == null) emptyMap() else readTensors(files.bytes("adapters/$adapter/adapter.safetensors"))
        val floats = slots[0].dtype == "float32"
        for ((name, bytes) in slotBytes(slots, tensors)) {
            // Integers are written as they lie in the file: the API has no 16-bit type, and copies bytes.
            if (floats) inputs.getValue(name).writeFloat(Tensor("F32", intArrayOf(), bytes).floats()) else inputs.getValue(name).writeInt8(bytes)
        }
        if (scales != null) files.scalesPort(component).write(slotScales(slots, tensors), inputs.getValue(scales))
    }

    fun run(
        values: Map<String, FloatArray>,
        ids: IntArray? = null,
    ): FloatArray {
        for ((name, numbers) in values) inputPorts.getValue(name).write(numbers, inputs.getValue(name))
        if (ids != null) inputs.getValue("input_ids").writeInt(ids)
        val answer = mapOf(outputName to output)
        model.run(inputs, answer)
        return when (outputPort.dtype) {
            "float32" -> {
                output.readFloat()
            }

            "int16" -> {
                widen!!.run(answer, mapOf("float" to widened!!))
                widened.readFloat()
            }

            else -> {
                outputPort.decoded(output.readInt8())
            }
        }
    }

    fun takes(name: String): Boolean = name in inputs

    override fun close() {
        (inputs.values + listOfNotNull(output, widened)).forEach { it.close() }
        widen?.close()
        model.close()
    }
}
