package quad.sample

import org.json.JSONArray
import org.json.JSONObject

fun ints(array: JSONArray): IntArray = IntArray(array.length()) { array.getInt(it) }

fun doubles(array: JSONArray): DoubleArray = DoubleArray(array.length()) { array.getDouble(it) }

fun strings(array: JSONArray): List<String> = List(array.length()) { array.getString(it) }

fun objects(array: JSONArray): List<JSONObject> = List(array.length()) { array.getJSONObject(it) }
