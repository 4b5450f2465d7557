"""What SAVE is: the model, its audio front end, and the loading of published checkpoints."""

from model.save import SAVE, build_save
from model.vggish import log_mel_examples

__all__ = ["SAVE", "build_save", "log_mel_examples"]
