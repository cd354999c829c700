"""Offline work on whole data sets: checks, statistics, and shards that are read at random (`glipv2 data`)."""
