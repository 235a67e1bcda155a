package quad.sample

import android.app.Activity
import android.graphics.Bitmap
import android.graphics.Color
import android.os.Bundle
import android.widget.ArrayAdapter
import android.widget.Button
import android.widget.EditText
import android.widget.ImageView
import android.widget.LinearLayout
import android.widget.Spinner
import android.widget.TextView
import java.util.Random
import java.util.concurrent.Executors

/** A prompt, an adapter, a picture. */
class MainActivity : Activity() {
    private val worker = Executors.newSingleThreadExecutor()
    private lateinit var pipeline: TextToImage // of the worker alone

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        val files = BundleFiles(assets)
        val prompt = EditText(this).apply { setText(R.string.prompt) }
        val choices = listOf(getString(R.string.without_adapter)) + files.adapters
        val adapters = Spinner(this).apply { adapter = ArrayAdapter(context, android.R.layout.simple_spinner_item, choices) }
        val image = ImageView(this).apply { adjustViewBounds = true }
        val said = TextView(this)
        val button = Button(this).apply { setText(R.string.make) }
        val views = listOf(prompt, adapters, button, said, image)
        setContentView(
            LinearLayout(this).apply {
                orientation = LinearLayout.VERTICAL
                views.forEach { addView(it) }
            },
        )
        worker.execute { pipeline = TextToImage(files) }
        button.setOnClickListener {
            val adapter = adapters.selectedItemPosition.let { if (it == 0) null else files.adapters[it - 1] }
            val words = prompt.text.toString()
            button.isEnabled = false
            worker.execute {
                val began = System.nanoTime()
                val random = Random(0)
                val pixels = pipeline.picture(words, adapter, STEPS, FloatArray(pipeline.noiseSize) { random.nextGaussian().toFloat() })
                val bitmap = bitmap(pixels, pipeline.pictureSize)
                val milliseconds = (System.nanoTime() - began) / 1_000_000
                runOnUiThread {
                    image.setImageBitmap(bitmap)
                    said.text = "$STEPS steps, $milliseconds ms"
                    button.isEnabled = true
                }
            }
        }
    }

    override fun onDestroy() {
        worker.execute { pipeline.close() }
        worker.shutdown()
        super.onDestroy()
    }

    private fun bitmap(
        pixels: FloatArray,
        size: Pair<Int, Int>,
    ): Bitmap {
        val (width, height) = size
        val plane = width * height

        fun level(value: Float) = Math.rint(((value + 1) * 127.5f).toDouble()).toInt().coerceIn(0, 255)
        val colors = IntArray(plane) { Color.rgb(level(pixels[it]), level(pixels[plane + it]), level(pixels[2 * plane + it])) }
        return Bitmap.createBitmap(colors, width, height, Bitmap.Config.ARGB_8888)
    }

    private companion object {
        const val STEPS = 16
    }
}
