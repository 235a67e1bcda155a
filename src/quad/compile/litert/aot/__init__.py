"""A `.tflite` file for the chips of a build's `--soc`: Qualcomm's compiled and proven, others' front ends where their SDK is."""
