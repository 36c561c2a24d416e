"""Real scans: BIDS sets, DICOM folders and NIfTI tables, and how they become pairs of slices."""
