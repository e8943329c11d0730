"""Devices as a fleet: tiers, the virtual clock, cohorts, and who counts."""
