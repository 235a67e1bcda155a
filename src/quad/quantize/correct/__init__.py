"""Corrections beside the encodings: smoothing, biases, the choice of 8-bit sites, quantsim."""
