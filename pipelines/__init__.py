"""What runs: one short file per job, each an entry point of ``ray job submit``."""
