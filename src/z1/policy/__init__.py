"""The policy: a pi0.5 network of any size, its sampler, its input and output processing, and its checkpoints.

Modules: ``config`` (sizes and processing), ``siglip``, ``gemma`` and ``pi05`` (the network), ``flow`` (pure maths of
flow matching and its stochastic sampler), ``sampler`` (chunks and their log-probs), ``tokenizer``, ``weights`` (tensor
names of other code bases), ``trainable`` (what trains) and ``policy`` (everything together, with load and save).
"""
