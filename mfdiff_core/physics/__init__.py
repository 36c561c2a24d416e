"""Simulated PET/MR slices (Sec. 4.2 and stand-ins of Sec. 4.3).

Reading order: `phantom` (tissues and grids), `mni` and `brainweb` (people), `head` (lesions and
contrasts), `kinetics`, `projector`, `psf`, `osem`, `acquisition`, `recipe` and `domains`
(settings), `simulate` (all of it, one subject at a time).
"""
