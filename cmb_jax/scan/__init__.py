"""What the images of a scan are: intensity or phase, in which unit, of a head or not."""
