"""DICOM in and out: series sorted, recognized and converted; findings as segmentation and report."""
