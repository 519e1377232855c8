"""Two time points of one patient: registration, lesions matched, what changed."""
