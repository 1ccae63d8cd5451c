"""AVS-Mamba (IV of the paper): configuration, modules, backbones. Knows no files and no media."""
