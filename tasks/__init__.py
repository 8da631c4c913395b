"""Registered tasks: real ones from files, and a generated suite."""
