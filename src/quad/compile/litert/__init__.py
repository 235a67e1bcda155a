"""LiteRT: placed graphs as `.tflite` files, for the NPUs of several vendors and for any CPU."""
