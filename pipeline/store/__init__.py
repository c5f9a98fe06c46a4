"""Zarr stores: layout, writing, leases, receipts, reading and STAC metadata."""
