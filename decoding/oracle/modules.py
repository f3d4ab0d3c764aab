"""The reference's modules.  Packages export functions under the same names, which hide the modules from plain imports."""

import importlib

accept = importlib.import_module("decoding.accept")
accept_block = importlib.import_module("decoding.accept_block")
draft = importlib.import_module("decoding.draft")
generate = importlib.import_module("decoding.generate")
rollback = importlib.import_module("decoding.rollback")
sampling = importlib.import_module("decoding.sampling")
speculative = importlib.import_module("decoding.speculative")
verify = importlib.import_module("decoding.verify")
drafter_model = importlib.import_module("drafter.model")
functional = importlib.import_module("gemma4.functional")
