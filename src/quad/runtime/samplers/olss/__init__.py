"""OLSS: the sampler, its solver, and the teacher trajectories it is solved from."""
