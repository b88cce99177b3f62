"""z1: reinforcement-learning post-training of flow-matching vision-language-action policies.

Importing this package loads neither torch nor a simulator; the simulator hosts rely on that.
"""

__version__ = "0.1.0"
