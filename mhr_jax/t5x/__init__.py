"""Routed models under the real T5X: its trainer, its gin files, its launcher.

Nothing else of the library imports these modules; gin files do. T5X is not on
the package index: `docs/t5x.md` says how to install a checkout.
"""
