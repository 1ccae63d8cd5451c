"""Operators with several back ends; `avsseg.ops.selective_scan` is the one that the whole model runs on."""
