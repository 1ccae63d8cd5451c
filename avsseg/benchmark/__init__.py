"""How large, how fast and how hungry the models and the scan back ends are on this machine."""
