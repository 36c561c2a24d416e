"""The platform around `mfdiff_core`: Ray to run it, MLflow to remember it, click to ask for it.

Reading order: `cli` (one file per verb), `simulate`, `pretrain`, `adapt` (with `trial` and
`searcher`), `tracking`, `registry`, `report`. Nothing here knows how a network is built.
"""
