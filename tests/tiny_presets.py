"""The beginning of presets that train a tiny model from scratch."""

FROM_SCRATCH = """
[model]
use = "mistral"
dtype = "float32"
template = "zephyr"
[model.scratch]
vocabulary = 300
width = 16
layers = 1
heads = 2
kv_heads = 1
mlp_width = 16
context = 512
text = [{ use = "quickstart", part = "text", count = 20 }]
"""
