"""The Brain Imaging Data Structure: names, folders, sidecars, and which images of a scan to take."""
