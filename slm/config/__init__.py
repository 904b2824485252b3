"""Typed configurations and their loader. Owns what a person may write; touches no network, GPU or model file."""
