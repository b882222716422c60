"""The training of one worker: plain torch.distributed, in processes that Ray Train starts, or alone in one."""
