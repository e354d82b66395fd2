"""The optimizers: Muon for the banks, AdamW for everything else."""
