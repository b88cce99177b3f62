"""Demonstrations of others, episode by episode, for ``z1.data.importing``.

Modules: ``source`` (what every source offers), ``open`` (which kind a path is), ``robomimic`` (HDF5 of RoboCasa v0.2),
``lerobot_v2`` and ``lerobot_v3`` (LeRobot datasets), ``orders`` (where a file's state and action numbers belong).
"""
