"""Losses as pure tensor code. They know no model, no data set and no process group."""
