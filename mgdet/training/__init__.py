"""The training loop of one worker: plain torch.distributed, so it runs under Ray Train, under torchrun, or alone."""
