"""The calls of networks that a build is made from: samples to run, their recording, and the float side of every comparison."""
