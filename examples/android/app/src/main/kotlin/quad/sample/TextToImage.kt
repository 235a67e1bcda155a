package quad.sample

import org.json.JSONObject

/** Text to image: text encoder, sampler loop, decoder. One picture at a time. */
class TextToImage(
    private val files: BundleFiles,
) : AutoCloseable {
    private val manifest = files.manifest
    private val text: JSONObject = manifest.getJSONObject("text")
    private val latent: JSONObject = manifest.getJSONObject("latent")
    private val width = manifest.optJSONArray("sizes")?.getJSONArray(0)?.getInt(0) ?: manifest.getInt("size")
    private val height = manifest.optJSONArray("sizes")?.getJSONArray(0)?.getInt(1) ?: manifest.getInt("size")
    private val cells = width / latent.getInt("factor") * (height / latent.getInt("factor"))
    private val channels = latent.getInt("channels")
    private val guidance =
        manifest
            .getJSONObject("tasks")
            .optJSONObject("text-to-image")
            ?.optDouble("guidance", 1.0)
            ?.toFloat() ?: 1f
    private val encoder = Graph(files, "text_encoder")
    private val unet = Graph(files, "unet")
    private val decoder = Graph(files, "vae_decoder")
    private val tokens = Tokens(files.json("tokenizer/tokenizer.json"), text.getInt("length"), text.getInt("pad_id"))

    val pictureSize: Pair<Int, Int> get() = Pair(width, height)
    val noiseSize: Int get() = channels * cells

    fun graph(component: String): Graph = mapOf("text_encoder" to encoder, "unet" to unet, "vae_decoder" to decoder).getValue(component)

    fun ids(prompt: String): IntArray = tokens.ids(prompt)

    /** Hidden states of a prompt, with rows of zeros up to what the denoiser reads. */
    fun features(prompt: String): FloatArray {
        val vectors = if (encoder.takes("embeddings")) mapOf("embeddings" to FloatArray(text.getInt("length") * text.getInt("hidden"))) else emptyMap()
        val hidden = encoder.run(vectors, ids(prompt))
        return hidden.copyOf(hidden.size * text.optInt("chunks", 1))
    }

    /**
     * Pixels in [-1, 1], red, green and blue planes.
     *
     * @param adapter one of the bundle's, null for none.
     * @param noise numbers of a normal distribution, `noiseSize` of them.
     */
    fun picture(
        prompt: String,
        adapter: String?,
        steps: Int,
        noise: FloatArray,
    ): FloatArray {
        encoder.bind(adapter)
        unet.bind(adapter)
        val sides = (if (guidance <= 1f) listOf(prompt) else listOf("", prompt)).map { features(it) }
        val clean =
            Ddim(manifest.getJSONObject("schedule"), steps).run(noise) { x, timestep ->
                val sample = x + beside()
                val outputs =
                    sides.map { side ->
                        unet.run(mapOf("sample" to sample, "timestep" to floatArrayOf(timestep), "encoder_hidden_states" to side))
                    }
                if (outputs.size == 1) outputs[0] else FloatArray(x.size) { outputs[0][it] + guidance * (outputs[1][it] - outputs[0][it]) }
            }
        return decoder.run(mapOf("latent" to clean))
    }

    /** What follows the latent in the sample, where the graph has room for it: no condition picture, and a mask of ones. */
    private fun beside(): FloatArray =
        names()
            .flatMap { name -> if (name == "mask") List(cells) { 1f } else List(channels * cells) { 0f } }
            .toFloatArray()

    private fun names(): List<String> = latent.optJSONArray("beside")?.let { strings(it) } ?: listOf("condition", "mask")

    override fun close() = listOf(encoder, unet, decoder).forEach { it.close() }
}
