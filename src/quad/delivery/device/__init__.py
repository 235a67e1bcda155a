"""The device's side of delivery: fetch, verify, install, go back."""
