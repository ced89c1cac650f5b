"""Procedural chest radiographs."""
