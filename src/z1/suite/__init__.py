"""``z1 suite``: task-wise post-training of a whole list of tasks: one command, one table.

A suite is a study (``z1.ablate``) with one variant: its jobs, folder and resume are the study's. Modules: ``suite``
(what a suite is), ``builtin`` (those that z1 knows), ``results``, ``table`` and ``figure`` (what came out),
``published`` (what others report) and ``command``.
"""
