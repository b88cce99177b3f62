"""Data: LeRobot v3.0 datasets in and out, recording of demonstrations, statistics and normalisation.

Modules: ``stats`` (per-feature statistics), ``transforms`` (normalisation, padding), ``lerobot`` (the dataset reader)
on ``lerobot_files`` (its checks), ``lerobot_writer``, ``lerobot_format`` (the layout both share), ``video`` (mp4 in and
out), ``record`` on ``record_plan`` (demonstrations from scripted experts) and ``importing`` on ``sources``
(demonstrations of others).
"""
