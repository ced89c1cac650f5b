"""Procedural images: chest radiographs, and volumes of the abdomen."""
