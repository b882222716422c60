"""The training loop of one worker: plain torch.distributed, started by Ray Train, or alone in its process."""
