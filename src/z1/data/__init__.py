"""Data: LeRobot v3.0 datasets in and out, recording of demonstrations, statistics and normalisation.

Modules: ``stats`` (per-feature statistics), ``transforms`` (normalisation and padding), ``lerobot`` (the dataset
reader), ``lerobot_writer``, ``lerobot_format`` (the layout both share), ``video`` (mp4 in and out) and ``record``
(demonstrations from scripted experts).
"""
