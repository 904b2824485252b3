"""Several hosts: who they are, whether they are fit, which rank is whose, and what SLURM is asked for.

Owns the hostfile, the mapping of SLURM's and MPI's variables to ranks, the environment file, the checks of
`slm doctor`, and batch scripts as text. Does not own the steps that are run: the pipeline turns its graph into
jobs with what is here. No torch: it works on a login node.
"""
