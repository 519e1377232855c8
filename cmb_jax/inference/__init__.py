"""From the images of a scan to located detections and the files that report them."""
