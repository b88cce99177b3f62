"""Checkpoints of z1, LeRobot and openpi, in and out.

Modules: ``locate`` (a path or a hub name to a folder and its format), ``settings`` (what a checkpoint says, what the
user says, what nobody says), ``jsons`` (typed reading), ``sizes`` (a network's sizes from its tensors), ``lerobot`` and
``openpi`` (the two layouts, read and written), ``sidecar`` (z1's own settings beside a foreign checkpoint), ``load``,
``save`` and ``inspect``.
"""
