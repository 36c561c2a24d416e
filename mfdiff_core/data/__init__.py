"""Slices on disk and scans in files: Arrow shards, manifest, split, batches; NIfTI volumes."""
