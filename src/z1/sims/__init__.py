"""Simulators: host processes under their own interpreters, one adapter per simulator, and the pool that drives them.

What runs inside a host (``host``, ``protocol``, ``snapshot``, ``adapter``, ``rendering`` and the adapters) imports only
the standard library, numpy and its simulator, and keeps to Python 3.10 syntax. ``pool``, ``hosts``, ``link``, ``spec``,
``suites`` and ``check`` belong to the main process. Nothing is imported here, so that a host loads only what it needs.
"""
