"""Boxes in voxels of the working grid: geometry, coding, anchors, assignment, suppression."""
