package quad.sample

import org.json.JSONObject

/** Token ids of a tokenizer of whole words, as the shipped reference model has; CLIP's pairs of bytes are not read here. */
class Tokens(
    tokenizer: JSONObject,
    private val length: Int,
    private val padding: Int,
) {
    private val model = tokenizer.getJSONObject("model")
    private val vocabulary = model.getJSONObject("vocab")
    private val unknown = vocabulary.getInt(model.getString("unk_token"))
    private val between: Regex
    private val first = mutableListOf<Int>()
    private val last = mutableListOf<Int>()

    init {
        val before = tokenizer.getJSONObject("pre_tokenizer")
        require(model.getString("type") == "WordLevel") { "expected a tokenizer of whole words, found ${model.getString("type")}" }
        between = Regex(if (before.getString("type") == "Split") before.getJSONObject("pattern").getString("Regex") else "\\s+")
        var side = first
        tokenizer.optJSONObject("post_processor")?.let { frame ->
            for (part in objects(frame.getJSONArray("single"))) {
                if (part.has("Sequence")) side = last else side.add(vocabulary.getInt(part.getJSONObject("SpecialToken").getString("id")))
            }
        }
    }

    fun ids(prompt: String): IntArray {
        val words = prompt.lowercase().split(between).filter { it.isNotEmpty() }
        val read = words.take(length - first.size - last.size).map { vocabulary.optInt(it, unknown) }
        val ids = first + read + last
        return IntArray(length) { ids.getOrElse(it) { padding } }
    }
}
