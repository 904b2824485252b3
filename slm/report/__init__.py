"""A run folder as one page that a person judges it by, and as tables that a program reads.

Owns the reading of results, plots, the page, the closing table. Does not own any measuring: every
figure comes from files that other rooms wrote, and what was not measured is shown as missing.
"""
