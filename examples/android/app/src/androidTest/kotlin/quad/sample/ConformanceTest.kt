package quad.sample

import androidx.test.ext.junit.runners.AndroidJUnit4
import androidx.test.platform.app.InstrumentationRegistry
import org.junit.After
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertTrue
import org.junit.Assume.assumeTrue
import org.junit.Test
import org.junit.runner.RunWith

/** The bundle's own conformance vectors on this device; `prepare.py` puts them among the assets. */
@RunWith(AndroidJUnit4::class)
class ConformanceTest {
    private val instrumentation = InstrumentationRegistry.getInstrumentation()
    private val files = BundleFiles(instrumentation.targetContext.assets)
    private val vectors = files.json("conformance.json")
    private val tensors = readTensors(files.bytes("conformance.safetensors"))
    private val grid = vectors.getInt("grid")
    private val pipeline = TextToImage(files)

    @After
    fun close() = pipeline.close()

    @Test
    fun tokensAndTextFeatures() {
        pipeline.graph("text_encoder").bind(null)
        for (text in objects(vectors.getJSONArray("texts"))) {
            if (text.getString("prompt_syntax") != "plain") continue
            val prompt = text.getString("prompt")
            assertArrayEquals(prompt, ints(text.getJSONArray("ids").getJSONArray(0)), pipeline.ids(prompt))
            val hidden = files.manifest.getJSONObject("text").getInt("hidden")
            val features = pipeline.features(prompt)
            val far = distance(text, blockMeans(features, features.size / hidden, hidden, grid))
            assertTrue("text '$prompt': $far", far <= text.getDouble("tolerance"))
        }
    }

    @Test
    fun everyAdapterAndTheDecoder() {
        for (call in objects(vectors.getJSONArray("calls"))) {
            val component = call.getString("graph")
            if (component !in setOf("unet", "vae_decoder")) continue
            val adapter = call.optString("adapter").ifEmpty { null }
            val graph = pipeline.graph(component).apply { bind(adapter) }
            val named = call.getJSONObject("inputs")
            val answer = graph.run(named.keys().asSequence().associateWith { tensors.getValue(named.getString(it)).floats() })
            val (rows, columns) = planes(component)
            val far = distance(call, blockMeans(answer, rows, columns, grid))
            assertTrue("$component $adapter: $far", far <= call.getDouble("tolerance"))
        }
    }

    @Test
    fun adaptersLeaveNothingBehind() {
        val calls = objects(vectors.getJSONArray("calls")).filter { it.getString("graph") == "unet" }
        assumeTrue(files.adapters.size > 1)
        val named = calls[0].getJSONObject("inputs")
        val inputs = named.keys().asSequence().associateWith { tensors.getValue(named.getString(it)).floats() }
        val unet = pipeline.graph("unet")
        val answers = listOf(0, 1, 0).map { index -> unet.apply { bind(files.adapters[index]) }.run(inputs) }
        assertArrayEquals(answers[0], answers[2], 0f)
        assertTrue("two adapters answer alike", answers[0].indices.any { answers[0][it] != answers[1][it] })
    }

    @Test
    fun wholePicture() {
        val noise =
            readTensors(
                instrumentation.context.assets
                    .open("noise.safetensors")
                    .use { it.readBytes() },
            )
        for (picture in objects(vectors.getJSONArray("pictures"))) {
            val task = files.manifest.getJSONObject("tasks").getJSONObject(picture.getString("task"))
            val sampler = task.getJSONObject("sampler")
            if (picture.getString("task") != "text-to-image" || sampler.getString("kind") != "ddim" || sampler.has("settings")) continue
            val first = noise.getValue(picture.getInt("seed").toString()).floats()
            val pixels = pipeline.picture(picture.getString("prompt"), null, picture.getInt("steps"), first)
            val shown = FloatArray(pixels.size) { (pixels[it] / 2 + 0.5f).coerceIn(0f, 1f) }
            val (width, height) = pipeline.pictureSize
            val far = distance(picture, blockMeans(shown, height, width, grid))
            assertTrue("picture: $far", far <= picture.getDouble("tolerance"))
        }
    }

    /** Rows and columns of a graph's answer. */
    private fun planes(component: String): Pair<Int, Int> {
        val (width, height) = pipeline.pictureSize
        val factor = if (component == "unet") files.manifest.getJSONObject("latent").getInt("factor") else 1
        return Pair(height / factor, width / factor)
    }
}
