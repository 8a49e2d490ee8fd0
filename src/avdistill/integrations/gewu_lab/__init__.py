"""Files of the paper's released implementation (GeWu-Lab/cross-modal-distillation, commit d5ceee6)."""
