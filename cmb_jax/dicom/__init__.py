"""DICOM in and out: series sorted, recognised and converted; findings as segmentation and report."""
