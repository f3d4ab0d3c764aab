"""Checkpoints in and out.  Nothing here is needed to understand the model.

hf_config.py    config.json to `Config` and back
target.py       a target's tensors by their Hugging Face names: load, save, export_hf
deepmind.py     a target from google-deepmind/gemma
params.py       the parameters of any module by name
safetensors.py, orbax.py    the two formats
hub.py          names on the Hugging Face hub
directories.py  directories that appear whole or not at all
"""
