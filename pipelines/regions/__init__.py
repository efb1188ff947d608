"""Labelled regions of images: boxes, what a map finds of them, what distillation changed there."""
