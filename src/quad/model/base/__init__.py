"""A diffusers model directory as frozen modules: family, weights, schedule, tokenizer, tasks."""
