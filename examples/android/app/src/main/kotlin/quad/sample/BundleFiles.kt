package quad.sample

import android.content.res.AssetManager
import org.json.JSONObject

/** The bundle among the app's assets, where `prepare.py` puts it. */
class BundleFiles(
    val assets: AssetManager,
    private val folder: String = "bundle",
) {
    val manifest: JSONObject = json("bundle.json")
    val slots: List<Slot> = objects(json("slots.json").getJSONArray("slots")).map { Slot(it) }
    val normalised: Boolean = json("slots.json").optString("mode") == "normalised"
    val adapters: List<String> = strings(manifest.getJSONArray("adapters"))

    init {
        require(manifest.getInt("format_version") == 1) { "expected a bundle of format 1; update this sample" }
        require("litert" in strings(manifest.getJSONArray("engines"))) { "expected a bundle for litert: quad build --target litert" }
    }

    /** How the scales of normalised slots enter a graph: by the profile, floats where it has no encoding of them. */
    fun scalesPort(component: String): Port =
        json("profile.json")
            .getJSONObject("encodings")
            .optJSONObject(component)
            ?.optJSONObject("$component.lora_scales")
            ?.let { Port.of(it) } ?: Port.FLOATS

    fun path(name: String): String = "$folder/$name"

    fun has(name: String): Boolean = assets.list(path(name).substringBeforeLast('/')).orEmpty().contains(name.substringAfterLast('/'))

    fun bytes(name: String): ByteArray = assets.open(path(name)).use { it.readBytes() }

    fun json(name: String): JSONObject = JSONObject(String(bytes(name), Charsets.UTF_8))
}
