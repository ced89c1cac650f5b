"""Files in and out: images, masks, whole-or-nothing writes."""
