"""How SAVE learns: data, losses, the loop, checkpoints and evaluation."""
