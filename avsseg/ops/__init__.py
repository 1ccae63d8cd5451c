"""Operators with several back ends; `avsseg.ops.selective_scan` is the one that the whole model runs on."""

from __future__ import annotations

import os

import torch

if hasattr(os, "register_at_fork"):  # not on Windows
    # a forked process has none of OpenMP's threads, and would wait for them for ever
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))
