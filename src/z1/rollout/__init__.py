"""Rollouts: groups of episodes of the same scene, and the training batches made from them."""
